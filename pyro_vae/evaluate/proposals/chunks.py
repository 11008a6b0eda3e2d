r"""Evaluation of particles in chunks that fit the memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def in_chunks(function: Callable[[Tensor], tuple[Tensor, ...]], u: Tensor, size: int) -> tuple[Tensor, ...]:
    """Call a function of particles u (K, B, D) on chunks, and join its results along K.

    All chunks have one size, for which a graph is compiled once; the last one is filled up with copies of a particle.

    Args:
        function: Function from particles to tensors with the particles as first dimension, computed independently.
        u: Particles.
        size: Particles of a chunk.
    """
    size = min(size, len(u))
    missing = -len(u) % size
    padded = torch.cat([u, u[-1:].expand(missing, -1, -1)]) if missing else u
    columns = zip(*(function(chunk) for chunk in padded.split(size)), strict=True)
    return tuple(torch.cat(column)[: len(u)] for column in columns)
