r"""How many particles to sample and to score at once, and recovery from running out of memory.

Particles are sampled in blocks, whose size does not depend on the free memory: a seed gives the same samples whatever
is free. Each block is scored in chunks, whose size depends on the free memory and does not affect the weights.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyro_vae import memory
from pyro_vae.errors import is_out_of_memory
from pyro_vae.trace import Batch, EagerBackend, Layout, Program

# Rows (particles x images) evaluated at once, if memory allows: few enough for activations to stay in the caches of a
# CPU, and enough to occupy every multiprocessor of a GPU.
_MAX_ROWS = {"cpu": 4_000, "cuda": 200_000}
# The guide encodes the images once per block; at least this many particles share that cost.
_MIN_BLOCK = 100
# Estimated bytes per pixel of a particle while it is scored. A GPU raises an error when its memory is full, and the
# chunk is halved. A process that fills the memory of the host is killed, so that estimate must cover the most
# memory-intensive likelihood, a PixelCNN.
_BYTES_PER_PIXEL = {"cpu": 1000, "cuda": 100}

Values = dict[str, Tensor]


def rows_at_once(batch: Batch) -> int:
    """Return how many particles of a batch give the number of rows that is most efficient to evaluate at once."""
    return max(1, _MAX_ROWS.get(batch.device.type, _MAX_ROWS["cpu"]) // len(batch))


def block_size(batch: Batch) -> int:
    """Return how many particles of a batch are sampled at once: a multiple of `rows_at_once`, at least 100."""
    rows = rows_at_once(batch)
    return rows * -(-_MIN_BLOCK // rows)


def chunk_size(batch: Batch, states: int) -> int:
    """Return how many particles are scored at once, if each is scored at `states` joint values of discrete latents."""
    return max(1, min(rows_at_once(batch), _max_particles_in_memory(batch.x)) // states)


def _max_particles_in_memory(x: Tensor) -> int:
    """Return how many particles of images x (B, ...) can be scored at once in half of the free memory."""
    free = torch.cuda.mem_get_info(x.device)[0] if x.device.type == "cuda" else memory.free()
    if free is None:
        return 2**31
    return max(1, free // 2 // (_BYTES_PER_PIXEL.get(x.device.type, 100) * x.numel()))


class Scorer:
    """Score samples in chunks, whose size is halved if memory runs out."""

    def __init__(self, model: Program, batch: Batch, backend: EagerBackend, layout: Layout, chunk: int) -> None:
        self.model, self.batch, self.backend, self.layout, self.chunk = model, batch, backend, layout, chunk

    def score(self, values: Values, log_q: Values, num_samples: int) -> Iterator[tuple[Tensor, ...]]:
        """Yield log p(x|z), log p(z) and log q(z|x) of K particles (K, B, ...), one chunk (k, B) at a time."""
        start = 0
        while start < num_samples:
            size = min(self.chunk, num_samples - start)
            rows = slice(start, start + size)
            try:
                given = {name: z[rows] for name, z in values.items()}
                sites = self.backend.log_density(self.model, self.batch, given, self.layout)
            except RuntimeError as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
                # Keep the smaller size: the next chunk of the old size would run out of memory again.
                self.chunk = size // 2
                continue
            shape = (size, len(self.batch))
            latent = [sites.pop(name) for name in values]
            guide = [value[rows] for value in log_q.values()]
            yield tuple(_total(terms, shape, self.batch.x) for terms in (list(sites.values()), latent, guide))
            start += size


def _total(terms: list[Tensor], shape: tuple[int, int], x: Tensor) -> Tensor:
    total = torch.zeros(shape, dtype=torch.float64, device=x.device)
    return total + sum(terms) if terms else total
