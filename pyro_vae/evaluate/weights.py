r"""Importance weights of any program: the one primitive of every evaluator.

log w_k = log p(x|z_k) + log p(z_k) - log q(z_k|x),    z_k ~ q(z|x),    in nats.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.trace import (
    Program,
    Reader,
    check_support,
    is_deterministic,
    is_out_of_memory,
    no_density,
    quietly,
    run_at,
)

# Rows (particles x images) that are drawn at once, and scored at once where memory allows it: activations that stay in
# cache on a CPU, and enough work for every multiprocessor of a GPU. The chunk does not change what is drawn.
_ROWS = {"cpu": 4_000, "cuda": 200_000}
# Draws are made in blocks of at least so many, since the guide encodes the images once for each.
_LEAST_BLOCK = 100
# What a particle is reckoned to take while it is scored. A device says when it has no more memory, and the chunk is
# halved; a process that fills the host's is killed, and so the hungriest likelihood counts there, a PixelCNN.
_BYTES_PER_PIXEL = {"cpu": 1000, "cuda": 100}

Values = dict[str, Tensor]


class Parts(NamedTuple):
    """The parts of the log weights, each (K, B) in nats, float64.

    `reason` says why they are not parts of a log weight, where a program has no density of its own: then the weights
    are NaN, and so is what a point mass or an improper prior leaves undefined; a loss stays what it is.
    """

    log_likelihood: Tensor
    log_prior: Tensor
    log_guide: Tensor
    reason: str | None = None

    @property
    def log_weights(self) -> Tensor:
        """The sum log p(x|z) + log p(z) - log q(z|x), (K, B)."""
        if self.reason:
            return torch.full_like(self.log_likelihood, torch.nan)
        return self.log_likelihood + self.log_prior - self.log_guide


def log_weights(
    model: Program,
    guide: Program,
    x: Tensor,
    num_samples: int,
    *,
    chunk: int | None = None,
    seed: int | None = None,
    reader: Reader | None = None,
) -> Tensor:
    """Return log importance weights (K, B) of K draws from the guide, float64, in nats.

    See `log_weight_parts`, of which this is the sum.
    """
    return log_weight_parts(model, guide, x, num_samples, chunk=chunk, seed=seed, reader=reader).log_weights


def log_weight_parts(
    model: Program,
    guide: Program,
    x: Tensor,
    num_samples: int,
    *,
    chunk: int | None = None,
    seed: int | None = None,
    reader: Reader | None = None,
) -> Parts:
    """Draw K particles per image and score them; no parameter, random stream or store entry changes.

    The modules behind the programs are read in evaluation mode. Site densities are evaluated in the
    precision of the network and summed in float64.

    Args:
        model: program of p(x, z); its sites stand in one data plate.
        guide: program of q(z|x).
        x: images (B, ...), in the support of the observed site.
        num_samples: K.
        chunk: particles scored at once (None: as many as free memory allows); it is halved where memory runs out after
            all. It changes no weight.
        seed: of the draws; the same seed gives the same weights. ``None`` draws afresh.
        reader: how the programs are read; a `CompiledReader`, kept from batch to batch, for many images.

    Raises:
        ValueError: K or the chunk is below 1, x is empty, not finite or outside the support, a site stands outside
            the data plate, or model and guide do not have the same latent sites.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; it must be at least 1.")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is {chunk}; it must be at least 1.")
    if len(x) == 0:
        raise ValueError("x holds no image.")
    if not x.isfinite().all():
        image = int((~x.isfinite()).reshape(len(x), -1).any(1).nonzero()[0])
        raise ValueError(f"x is not finite in image {image}; remove or repair it.")
    rows = max(1, _ROWS.get(x.device.type, _ROWS["cpu"]) // len(x))
    block = rows * -(-_LEAST_BLOCK // rows)
    scorer = _Scorer(model, x, reader or Reader(), chunk or min(rows, _room(x)))
    parts: list[tuple[Tensor, ...]] = []
    with torch.no_grad(), quietly(model, guide, x=x, seed=seed):
        for start in range(0, num_samples, block):
            size = min(block, num_samples - start)
            values, log_q = scorer.reader.draw(guide, x, size)
            if not start:
                first = {name: value[:1] for name, value in values.items()}
                p, q = run_at(model, x, first), run_at(guide, x, first)
                check_support(p)
                lack = no_density(p, q)
                if is_deterministic(q):  # one particle is all of them
                    parts += scorer.score(first, {name: value[:1] for name, value in log_q.items()}, 1)
                    break
            parts += scorer.score(values, log_q, size)
    log_p, log_prior, log_guide = (torch.cat(column).expand(num_samples, -1) for column in zip(*parts, strict=True))
    if lack and lack.of_latent:
        log_prior = log_guide = torch.full_like(log_p, torch.nan)
    return Parts(log_p, log_prior, log_guide, lack.reason if lack else None)


class _Scorer:
    """Scores what has been drawn, in chunks that are halved where memory runs out."""

    def __init__(self, model: Program, x: Tensor, reader: Reader, chunk: int) -> None:
        self.model, self.x, self.reader, self.chunk = model, x, reader, chunk

    def score(self, values: Values, log_q: Values, num_samples: int) -> Iterator[tuple[Tensor, ...]]:
        """Yield log p(x|z), log p(z) and log q(z|x) of K particles (K, B, ...) chunk by chunk."""
        start = 0
        while start < num_samples:
            size = min(self.chunk, num_samples - start)
            here = slice(start, start + size)
            try:
                sites = self.reader.log_density(self.model, self.x, {name: z[here] for name, z in values.items()})
            except RuntimeError as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
                self.chunk = size // 2
                continue
            shape = (size, len(self.x))
            latent = [sites.pop(name) for name in values]
            guide = [value[here] for value in log_q.values()]
            yield tuple(_total(terms, shape, self.x) for terms in (list(sites.values()), latent, guide))
            start += size


def _room(x: Tensor) -> int:
    """Return how many particles of images x (B, ...) may be scored at once in half of the free memory."""
    if x.device.type == "cuda":
        free = torch.cuda.mem_get_info(x.device)[0]
    elif "SC_AVPHYS_PAGES" in os.sysconf_names:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        return 2**31
    return max(1, free // 2 // (_BYTES_PER_PIXEL.get(x.device.type, 100) * x.numel()))


def _total(terms: list[Tensor], shape: tuple[int, int], x: Tensor) -> Tensor:
    total = torch.zeros(shape, dtype=torch.float64, device=x.device)
    return total + sum(terms) if terms else total
