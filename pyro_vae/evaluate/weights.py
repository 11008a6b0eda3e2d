r"""Importance weights of any program: the one primitive of every evaluator.

log w_k = log p(x|z_k) + log p(z_k) - log q(z_k|x),    z_k ~ q(z|x),    in nats.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.trace import Program, check_support, draw, log_density, quietly, run_at

# Draws are made in blocks of this many particles whatever the chunk, so that the chunk changes no number.
_BLOCK = 100
# Rows (particles x images) that one pass of the default chunk decodes: activations that stay in cache on a
# CPU, and enough work for every multiprocessor of a GPU.
_ROWS = {"cpu": 4_000, "cuda": 200_000}

Values = dict[str, Tensor]


class Parts(NamedTuple):
    """The parts of the log weights, each (K, B) in nats, float64."""

    log_likelihood: Tensor
    log_prior: Tensor
    log_guide: Tensor

    @property
    def log_weights(self) -> Tensor:
        """The sum log p(x|z) + log p(z) - log q(z|x), (K, B)."""
        return self.log_likelihood + self.log_prior - self.log_guide


def log_weights(
    model: Program,
    guide: Program,
    x: Tensor,
    num_samples: int,
    *,
    chunk: int | None = None,
    seed: int | None = None,
) -> Tensor:
    """Return log importance weights (K, B) of K draws from the guide, float64, in nats.

    See `log_weight_parts`, of which this is the sum.
    """
    return log_weight_parts(model, guide, x, num_samples, chunk=chunk, seed=seed).log_weights


def log_weight_parts(
    model: Program,
    guide: Program,
    x: Tensor,
    num_samples: int,
    *,
    chunk: int | None = None,
    seed: int | None = None,
) -> Parts:
    """Draw K particles per image and score them; no parameter, random stream or store entry changes.

    The modules behind the programs are read in evaluation mode. Site densities are evaluated in the
    precision of the network and summed in float64.

    Args:
        model: program of p(x, z); its sites stand in one data plate.
        guide: program of q(z|x).
        x: images (B, ...), in the support of the observed site.
        num_samples: K.
        chunk: particles scored at once; memory is bounded by chunk x B. It changes no weight.
        seed: of the draws; the same seed gives the same weights. ``None`` draws afresh.

    Raises:
        ValueError: K or the chunk is below 1, x is empty, not finite or outside the support, a site stands outside
            the data plate, or model and guide do not have the same latent sites.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; it must be at least 1.")
    chunk = max(1, _ROWS.get(x.device.type, 4_000) // max(1, len(x))) if chunk is None else chunk
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; it must be at least 1.")
    if len(x) == 0:
        raise ValueError("x holds no image.")
    if not x.isfinite().all():
        image = int((~x.isfinite()).reshape(len(x), -1).any(1).nonzero()[0])
        raise ValueError(f"x is not finite in image {image}; remove or repair it.")
    parts: list[Parts] = []
    with torch.no_grad(), quietly(model, guide, x=x, seed=seed):
        for values, log_guide in _draws(guide, x, num_samples, chunk):
            if not parts:
                check_support(run_at(model, x, {name: value[:1] for name, value in values.items()}))
            sites = log_density(model, x, values)
            shape = (len(log_guide), x.shape[0])
            latent = [sites.pop(name) for name in values]
            parts.append(Parts(_total(list(sites.values()), shape, x), _total(latent, shape, x), log_guide))
    return Parts(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _total(terms: list[Tensor], shape: tuple[int, int], x: Tensor) -> Tensor:
    total = torch.zeros(shape, dtype=torch.float64, device=x.device)
    return total + sum(terms) if terms else total


def _draws(guide: Program, x: Tensor, num_samples: int, chunk: int) -> Iterator[tuple[Values, Tensor]]:
    """Yield (values, log q (k, B)) with k = chunk until K are drawn, from blocks that ignore the chunk."""
    values: Values = {}
    log_guide = torch.empty(0, x.shape[0], dtype=torch.float64, device=x.device)
    for start in range(0, num_samples, _BLOCK):
        size = min(_BLOCK, num_samples - start)
        drawn, log_q = draw(guide, x, size)
        values = {name: torch.cat([values[name], z]) if name in values else z for name, z in drawn.items()}
        log_guide = torch.cat([log_guide, _total(list(log_q.values()), (size, x.shape[0]), x)])
        last = start + size == num_samples
        while len(log_guide) >= chunk or (last and len(log_guide)):
            yield {name: z[:chunk] for name, z in values.items()}, log_guide[:chunk]
            values, log_guide = {name: z[chunk:] for name, z in values.items()}, log_guide[chunk:]
