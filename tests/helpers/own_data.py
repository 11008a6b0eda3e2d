"""Comparison of data sets read from a user's files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pyro_vae.data import Collection, DataError

SPLITS = ("train", "valid", "test")


def identical(a: Collection, b: Collection) -> bool:
    """Return whether values and labels are bit-identical, in the same order."""
    assert (a.labels is None) == (b.labels is None)
    pairs = [(a, b)] if a.labels is None else [(a, b), (a.labels, b.labels)]
    return all(torch.equal(getattr(x, split), getattr(y, split)) for x, y in pairs for split in SPLITS)


def error_with_and_without_cache(read: Callable[..., Collection], path: Path, cache: Path) -> str:
    """Return the error for a path, which must be the same with and without a cache and leave no cache entry."""
    messages = []
    for options in ({}, {"cache": cache}):
        with pytest.raises(DataError) as caught:
            read(path, **options)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert not (cache.exists() and list(cache.iterdir()))
    return messages[0]
