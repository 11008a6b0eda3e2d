"""Comparisons of a user's own data, as they have been read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pyro_vae.data import Collection, DataError

SPLITS = ("train", "valid", "test")


def identical(a: Collection, b: Collection) -> bool:
    """Whether values and labels are the same to the bit, in the same order."""
    assert (a.labels is None) == (b.labels is None)
    pairs = [(a, b)] if a.labels is None else [(a, b), (a.labels, b.labels)]
    return all(torch.equal(getattr(x, split), getattr(y, split)) for x, y in pairs for split in SPLITS)


def refused_alike(read: Callable[..., Collection], path: Path, cache: Path) -> str:
    """Return how a path is refused, with a cache as without one, and nothing is left there."""
    messages = []
    for options in ({}, {"cache": cache}):
        with pytest.raises(DataError) as caught:
            read(path, **options)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert not (cache.exists() and list(cache.iterdir()))
    return messages[0]
