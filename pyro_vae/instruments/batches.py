r"""Images in batches: as many at once as the memory holds, each batch with a seed of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pyro_vae.evaluate import posterior_means
from pyro_vae.trace import Batch, Data, derive_seed

EVAL_BATCH_SIZE = 100


def batches(x: Data, seed: int) -> Iterator[tuple[Batch, int | None]]:
    """Yield x (N, ...) in batches of 100 images, each with the seed of its noise."""
    for index, batch in enumerate(Batch.of(x).split(EVAL_BATCH_SIZE)):
        yield batch, derive_seed(seed, "batch", index)


def posterior_means_batched(program: Any, x: Data, seed: int) -> Tensor:
    """Return the posterior means (N, units), float64, of images x (N, ...)."""
    return torch.cat([posterior_means(program.guide, images, batch_seed) for images, batch_seed in batches(x, seed)])
