r"""Batches for evaluation, each with its own random seed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pyro_vae.evaluate import posterior_means
from pyro_vae.trace import Batch, Data, derive_seed

EVAL_BATCH_SIZE = 100


def batches(x: Data, seed: int) -> Iterator[tuple[Batch, int | None]]:
    """Yield batches of at most 100 images of x, shape (N, ...), each with a seed derived from `seed`."""
    for index, batch in enumerate(Batch.of(x).split(EVAL_BATCH_SIZE)):
        yield batch, derive_seed(seed, "batch", index)


def posterior_means_batched(program: Any, x: Data, seed: int) -> Tensor:
    """Compute the posterior means of x, shape (N, ...), in batches. The result is float64 of shape (N, units)."""
    return torch.cat([posterior_means(program.guide, images, batch_seed) for images, batch_seed in batches(x, seed)])
