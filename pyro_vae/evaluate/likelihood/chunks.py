r"""How many particles are drawn and scored at once, and what is done where memory runs out.

Draws come in blocks, which the number of images alone decides: with the same seed they are the same on every machine.
Scores come in chunks of a block, which memory decides and which change no weight.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyro_vae import memory
from pyro_vae.errors import is_out_of_memory
from pyro_vae.trace import Batch, EagerBackend, Layout, Program

# Rows (particles x images) that are drawn at once, and scored at once where memory allows it: activations that stay in
# cache on a CPU, and enough work for every multiprocessor of a GPU.
_MAX_ROWS = {"cpu": 4_000, "cuda": 200_000}
# The guide encodes the images once for each block; at least this many particles share that cost.
_MIN_BLOCK = 100
# What a particle is reckoned to take while it is scored. A device says when it has no more memory, and the chunk is
# halved; a process that fills the host's is killed, and so the hungriest likelihood counts there, a PixelCNN.
_BYTES_PER_PIXEL = {"cpu": 1000, "cuda": 100}

Values = dict[str, Tensor]


def rows_at_once(batch: Batch) -> int:
    """Return how many particles of a batch make as many rows as are best computed at once."""
    return max(1, _MAX_ROWS.get(batch.device.type, _MAX_ROWS["cpu"]) // len(batch))


def block_size(batch: Batch) -> int:
    """Return how many particles of a batch are drawn at once: whole multiples of `rows_at_once`, at least 100."""
    rows = rows_at_once(batch)
    return rows * -(-_MIN_BLOCK // rows)


def chunk_size(batch: Batch, states: int) -> int:
    """Return how many particles are scored at once, where each is scored at every one of a number of states."""
    return max(1, min(rows_at_once(batch), _max_particles_in_memory(batch.x)) // states)


def _max_particles_in_memory(x: Tensor) -> int:
    """Return how many particles of images x (B, ...) may be scored at once in half of the free memory."""
    free = torch.cuda.mem_get_info(x.device)[0] if x.device.type == "cuda" else memory.free()
    if free is None:
        return 2**31
    return max(1, free // 2 // (_BYTES_PER_PIXEL.get(x.device.type, 100) * x.numel()))


class Scorer:
    """Scores what has been drawn, in chunks that are halved where memory runs out."""

    def __init__(self, model: Program, batch: Batch, backend: EagerBackend, layout: Layout, chunk: int) -> None:
        self.model, self.batch, self.backend, self.layout, self.chunk = model, batch, backend, layout, chunk

    def score(self, values: Values, log_q: Values, num_samples: int) -> Iterator[tuple[Tensor, ...]]:
        """Yield log p(x|z), log p(z) and log q(z|x) of K particles (K, B, ...) chunk by chunk."""
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
                # For all that follows too: what has run out of memory once would do so again at every chunk.
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
