r"""Importance weights of any program: the one primitive of every evaluator.

log w_k = log p(x|z_k) + log p(z_k) - log q(z_k|x),    z_k ~ q(z|x),    in nats.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.errors import UserError, is_out_of_memory
from pyro_vae.evaluate.likelihood.independence import check_independence
from pyro_vae.trace import (
    Batch,
    Data,
    Description,
    Layout,
    Layouts,
    Program,
    Reader,
    Run,
    check_support,
    choose_layouts,
    description,
    outside_prior,
    quietly,
    run_pair,
)
from pyro_vae.trace.enumeration import number_of_states
from pyro_vae.trace.isolation import fork_rng

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
    x: Data,
    num_samples: int,
    *,
    chunk: int | None = None,
    seed: int | None = None,
    reader: Reader | None = None,
    shared: str | None = None,
) -> Tensor:
    """Return log importance weights (K, B) of K draws from the guide, float64, in nats.

    See `log_weight_parts`, of which this is the sum.

    Args:
        model: program of p(x, z).
        guide: program of q(z|x).
        x: as in `log_weight_parts`, like what is not named here.
        num_samples: K.
        chunk: particles scored at once.
        seed: of the draws.
        reader: how the programs are read.
        shared: ``"sampled"`` for a program with latents that all images share (global ones): they are drawn with the
            others, and the weights are joint ones of the batch, (K,), whose log-mean estimates log p(x_1, ..., x_B).

    Raises:
        ValueError: as `log_weight_parts`.
    """
    if shared not in (None, "sampled"):
        raise UserError(f"shared is {shared!r}; choose 'sampled' or None.")
    parts = _parts(model, guide, x, num_samples, chunk, seed, reader, joint=shared is not None)
    return parts.log_weights if shared is None else parts.log_weights.sum(1)


def log_weight_parts(
    model: Program,
    guide: Program,
    x: Data,
    num_samples: int,
    *,
    chunk: int | None = None,
    seed: int | None = None,
    reader: Reader | None = None,
) -> Parts:
    """Draw K particles per image and score them; no parameter, random stream or store entry changes.

    The modules behind the programs are read in evaluation mode. Site densities are evaluated in the
    precision of the network and summed in float64, without scales and without factors.

    Args:
        model: program of p(x, z).
        guide: program of q(z|x).
        x: images (B, ...), in the support of the observed site; or a tuple of the programs' positional arguments, or a
            `Batch` of those and keyword arguments.
        num_samples: K.
        chunk: particles scored at once (None: as many as free memory allows); it is halved where memory runs out after
            all. It changes no weight.
        seed: of the draws; the same seed gives the same weights. ``None`` draws afresh.
        reader: how the programs are read; a `CompiledReader`, kept from batch to batch, for many images.

    Raises:
        ValueError: K or the chunk is below 1, x is empty, not finite or outside the support, no plate has the size of
            the batch, a latent is shared by all images, model and guide do not have the same latent sites, or what the
            programs say of one image depends on those beside it.
    """
    return _parts(model, guide, x, num_samples, chunk, seed, reader, joint=False)


def _parts(
    model: Program,
    guide: Program,
    x: Data,
    num_samples: int,
    chunk: int | None,
    seed: int | None,
    reader: Reader | None,
    *,
    joint: bool,
) -> Parts:
    if num_samples < 1:
        raise UserError(f"num_samples is {num_samples}; it must be at least 1.")
    if chunk is not None and chunk < 1:
        raise UserError(f"chunk is {chunk}; it must be at least 1.")
    batch = Batch.of(x)
    if len(batch) == 0:
        raise UserError("x holds no image.")
    rows = rows_at_once(batch)
    block = rows * -(-_LEAST_BLOCK // rows)
    reader = reader or Reader()
    reader.start()
    parts: list[tuple[Tensor, ...]] = []
    lacks: str | None = None
    with torch.no_grad(), quietly(model, guide, x=batch, seed=seed):
        described, first, plain = checked(model, guide, batch, reader, joint=joint)
        # Where all particles are the same, one is all of them.
        drawn = 1 if described.deterministic else num_samples
        layouts = choose_layouts(model, guide, batch, drawn) if drawn > 1 else plain
        summed = number_of_states(layouts.model.summed)  # each particle is scored at every one of them
        scorer = _Scorer(model, batch, reader, layouts.model, chunk or max(1, min(rows, _room(batch.x)) // summed))
        enumerated = [site.name for site in layouts.guide.enumerated]
        states = number_of_states(layouts.guide.enumerated)
        for start in range(0, drawn, block):
            size = min(block, drawn - start)
            values, log_q = reader.draw(guide, batch, size, layouts.guide)
            log_q = {name: term for name, term in log_q.items() if name not in enumerated}
            found = list(scorer.score(values, log_q, size * states))
            lacks = lacks or _outside(first, values, torch.cat([log_prior for _, log_prior, _ in found]))
            parts += [_over_states(found, states)] if enumerated else found
    log_p, log_prior, log_guide = (torch.cat(column).expand(num_samples, -1) for column in zip(*parts, strict=True))
    _check_finite(batch.x, log_p, log_prior, log_guide)
    if described.lacks_latent:
        log_prior = log_guide = torch.full_like(log_p, torch.nan)
    return Parts(log_p, log_prior, log_guide, described.lacks or lacks)


def rows_at_once(batch: Batch) -> int:
    """Return how many particles of a batch are drawn at once."""
    return max(1, _ROWS.get(batch.device.type, _ROWS["cpu"]) // len(batch))


def checked(
    model: Program, guide: Program, batch: Batch, reader: Reader, *, joint: bool
) -> tuple[Description, Run, Layouts]:
    """Describe the programs, refuse what has no weights, and return a run of the model and plain layouts beside."""
    with fork_rng(batch.x):
        p, q = run_pair(model, guide, batch, 1)
        check_support(p)
        described = description(guide, batch, p, q)
        if not joint and described.why_not_per_image:
            raise UserError(described.why_not_per_image)
        if not joint and len(batch) > 1 and (model, guide) not in reader.checked:
            check_independence(model, guide, batch, p, q)
            reader.checked.add((model, guide))
    return described, p, Layouts(p.layout, q.layout)


def _over_states(chunks: list[tuple[Tensor, ...]], states: int) -> tuple[Tensor, ...]:
    """Sum the weights over what the guide enumerates: the parts of log sum_y w_y, (K, B) of (S * K, B) each.

    With the shares r_y of the values in the sum, it is the sum of E_r[log p(x|z,y)], E_r[log p(z,y)] and
    -E_r[log q(z|x,y) + log r_y]: the parts of a guide whose q(y|x) is the best there is, r.
    """
    log_p, log_prior, log_guide = (torch.cat(column).unflatten(0, (states, -1)) for column in zip(*chunks, strict=True))
    log_w = log_p + log_prior - log_guide
    total = log_w.logsumexp(0)
    # Of values that are all impossible each has a share, so that the sum stays minus infinity.
    log_shares = torch.where(total == -torch.inf, -math.log(states), log_w - total)
    shares = log_shares.exp()
    terms = (log_p, log_prior, log_guide + log_shares)
    return tuple(torch.where(shares > 0, shares * term, 0.0).sum(0) for term in terms)


def _outside(p: Run, values: Values, log_prior: Tensor) -> str | None:
    """Say why draws outside the support of the prior have no weight, unless their density there says 0 by itself."""
    outside, name = outside_prior(p, values)
    if (outside.to(log_prior.device) & (log_prior != -torch.inf)).any():
        return f"the guide draws {name!r} outside the support of its prior"
    return None


def _check_finite(x: Tensor, *terms: Tensor) -> None:
    """Refuse an image that is not finite, unless the program knows how to score it, as one of missing values does."""
    bad = ~x.isfinite().reshape(len(x), -1).all(1) if x.is_floating_point() else torch.zeros(len(x), dtype=torch.bool)
    unscored = ~torch.stack([term.isfinite().all(0) for term in terms]).all(0)
    if (wrong := bad.to(unscored.device) & unscored).any():
        raise UserError(f"x is not finite in image {int(wrong.nonzero()[0])}; remove or repair it.")


class _Scorer:
    """Scores what has been drawn, in chunks that are halved where memory runs out."""

    def __init__(self, model: Program, batch: Batch, reader: Reader, layout: Layout, chunk: int) -> None:
        self.model, self.batch, self.reader, self.layout, self.chunk = model, batch, reader, layout, chunk

    def score(self, values: Values, log_q: Values, num_samples: int) -> Iterator[tuple[Tensor, ...]]:
        """Yield log p(x|z), log p(z) and log q(z|x) of K particles (K, B, ...) chunk by chunk."""
        start = 0
        while start < num_samples:
            size = min(self.chunk, num_samples - start)
            here = slice(start, start + size)
            try:
                given = {name: z[here] for name, z in values.items()}
                sites = self.reader.log_density(self.model, self.batch, given, self.layout)
            except RuntimeError as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
                self.chunk = size // 2
                continue
            shape = (size, len(self.batch))
            latent = [sites.pop(name) for name in values]
            guide = [value[here] for value in log_q.values()]
            yield tuple(_total(terms, shape, self.batch.x) for terms in (list(sites.values()), latent, guide))
            start += size


def _room(x: Tensor) -> int:
    """Return how many particles of images x (B, ...) may be scored at once in half of the free memory."""
    if x.device.type == "cuda":
        free = torch.cuda.mem_get_info(x.device)[0]
    elif "SC_AVPHYS_PAGES" in getattr(os, "sysconf_names", ()):  # not on Windows
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        return 2**31
    return max(1, free // 2 // (_BYTES_PER_PIXEL.get(x.device.type, 100) * x.numel()))


def _total(terms: list[Tensor], shape: tuple[int, int], x: Tensor) -> Tensor:
    total = torch.zeros(shape, dtype=torch.float64, device=x.device)
    return total + sum(terms) if terms else total
