r"""Importance weights of any program: the one primitive of every evaluator.

log w_k = log p(x|z_k) + log p(z_k) - log q(z_k|x),    z_k ~ q(z|x),    in nats.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.evaluate.likelihood.checks import check_finite, check_programs, outside_prior_reason
from pyro_vae.evaluate.likelihood.chunks import Scorer, block_size, chunk_size
from pyro_vae.trace import (
    Batch,
    Data,
    EagerBackend,
    Program,
    choose_layouts,
    read_only,
)
from pyro_vae.trace.enumeration import count_states


class LogWeightTerms(NamedTuple):
    """The parts of the log weights, each (K, B) in nats, float64.

    `reason` says why they are not parts of a log weight, where a program has no density of its own: then the weights
    are NaN, and so is what a point mass or an improper prior leaves undefined; a loss stays what it is.
    """

    log_likelihood: Tensor
    log_prior: Tensor
    log_posterior: Tensor
    reason: str | None = None

    @property
    def log_weights(self) -> Tensor:
        """The sum log p(x|z) + log p(z) - log q(z|x), (K, B)."""
        if self.reason:
            return torch.full_like(self.log_likelihood, torch.nan)
        return self.log_likelihood + self.log_prior - self.log_posterior


def log_weights(
    model: Program,
    guide: Program,
    x: Data,
    num_samples: int,
    *,
    chunk: int | None = None,
    seed: int | None = None,
    backend: EagerBackend | None = None,
    shared: str | None = None,
) -> Tensor:
    """Return log importance weights (K, B) of K draws from the guide, float64, in nats.

    See `log_weight_terms`, of which this is the sum.

    Args:
        model: program of p(x, z).
        guide: program of q(z|x).
        x: as in `log_weight_terms`, like what is not named here.
        num_samples: K.
        chunk: particles scored at once.
        seed: of the draws.
        backend: how the programs are read.
        shared: ``"sampled"`` for a program with latents that all images share (global ones): they are drawn with the
            others, and the weights are joint ones of the batch, (K,), whose log-mean estimates log p(x_1, ..., x_B).

    Raises:
        ValueError: as `log_weight_terms`.
    """
    if shared not in (None, "sampled"):
        raise UserError(f"shared is {shared!r}; choose 'sampled' or None.")
    parts = _log_weight_terms(model, guide, x, num_samples, chunk, seed, backend, joint=shared is not None)
    return parts.log_weights if shared is None else parts.log_weights.sum(1)


def log_weight_terms(
    model: Program,
    guide: Program,
    x: Data,
    num_samples: int,
    *,
    chunk: int | None = None,
    seed: int | None = None,
    backend: EagerBackend | None = None,
) -> LogWeightTerms:
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
        backend: how the programs are read; a `CompiledBackend`, kept from batch to batch, for many images.

    Raises:
        ValueError: K or the chunk is below 1, x is empty, not finite or outside the support, no plate has the size of
            the batch, a latent is shared by all images, model and guide do not have the same latent sites, or what the
            programs say of one image depends on those beside it.
    """
    return _log_weight_terms(model, guide, x, num_samples, chunk, seed, backend, joint=False)


def _log_weight_terms(
    model: Program,
    guide: Program,
    x: Data,
    num_samples: int,
    chunk: int | None,
    seed: int | None,
    backend: EagerBackend | None,
    *,
    joint: bool,
) -> LogWeightTerms:
    if num_samples < 1:
        raise UserError(f"num_samples is {num_samples}; it must be at least 1.")
    if chunk is not None and chunk < 1:
        raise UserError(f"chunk is {chunk}; it must be at least 1.")
    batch = Batch.of(x)
    if len(batch) == 0:
        raise UserError("x holds no image.")
    block = block_size(batch)
    backend = backend or EagerBackend()
    backend.start_batch()
    terms: list[tuple[Tensor, ...]] = []
    no_weights_reason: str | None = None
    with torch.no_grad(), read_only(model, guide, x=batch, seed=seed, validate=False):
        description, first, plain = check_programs(model, guide, batch, backend, joint=joint)
        # Of a guide that draws nothing at random all particles are the same: one is scored, and counts as K.
        drawn = 1 if description.deterministic else num_samples
        layouts = choose_layouts(model, guide, batch, drawn) if drawn > 1 else plain
        # A particle is scored at every state of what the model sums out, and takes the memory of as many.
        chunk = chunk or chunk_size(batch, count_states(layouts.model.summed))
        scorer = Scorer(model, batch, backend, layouts.model, chunk)
        enumerated = [site.name for site in layouts.guide.enumerated]
        states = count_states(layouts.guide.enumerated)
        # All draws of a block come before its chunks are scored, so that the noise depends on K and on the size of the
        # batch alone, and neither on memory nor on `chunk`.
        for start in range(0, drawn, block):
            size = min(block, drawn - start)
            values, log_q = backend.draw(guide, batch, size, layouts.guide)
            # The states that the guide enumerates are summed over, not drawn: their q(y|x) cancels in the sum over y
            # of q(y|x) p(x, z, y) / q(y|x).
            log_q = {name: term for name, term in log_q.items() if name not in enumerated}
            chunk_terms = list(scorer.score(values, log_q, size * states))
            no_weights_reason = no_weights_reason or outside_prior_reason(
                first, values, torch.cat([log_prior for _, log_prior, _ in chunk_terms])
            )
            terms += [_over_states(chunk_terms, states)] if enumerated else chunk_terms
    log_p, log_prior, log_posterior = (torch.cat(column).expand(num_samples, -1) for column in zip(*terms, strict=True))
    check_finite(batch.x, log_p, log_prior, log_posterior)
    if description.no_latent_density:
        log_prior = log_posterior = torch.full_like(log_p, torch.nan)
    return LogWeightTerms(log_p, log_prior, log_posterior, description.no_density_reason or no_weights_reason)


def _over_states(chunks: list[tuple[Tensor, ...]], states: int) -> tuple[Tensor, ...]:
    """Sum the weights over what the guide enumerates: the parts of log sum_y w_y, (K, B) of (S * K, B) each.

    With the shares r_y of the values in the sum, it is the sum of E_r[log p(x|z,y)], E_r[log p(z,y)] and
    -E_r[log q(z|x,y) + log r_y]: the parts of a guide whose q(y|x) is the best there is, r.
    """
    log_p, log_prior, log_posterior = (
        torch.cat(column).unflatten(0, (states, -1)) for column in zip(*chunks, strict=True)
    )
    log_w = log_p + log_prior - log_posterior
    total = log_w.logsumexp(0)
    # Of values that are all impossible each has a share, so that the sum stays minus infinity.
    log_shares = torch.where(total == -torch.inf, -math.log(states), log_w - total)
    shares = log_shares.exp()
    terms = (log_p, log_prior, log_posterior + log_shares)
    return tuple(torch.where(shares > 0, shares * term, 0.0).sum(0) for term in terms)
