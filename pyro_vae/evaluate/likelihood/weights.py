r"""Log importance weights of any program, from which all scores are computed.

log w_k = log p(x|z_k) + log p(z_k) - log q(z_k|x),    z_k ~ q(z|x),    in nats.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.errors import UserError, check_count
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
    """Terms of the log weights in nats, float64, shape (K, B) each.

    Attributes:
        log_likelihood: log p(x|z).
        log_prior: log p(z). NaN if a point mass or an improper prior leaves it undefined.
        log_posterior: log q(z|x). NaN in the same cases.
        reason: Why log weights are undefined, e.g. because the likelihood is an unnormalized loss, or None. If it is
            set, `log_weights` is NaN, while `log_likelihood` keeps the value of the loss.
    """

    log_likelihood: Tensor
    log_prior: Tensor
    log_posterior: Tensor
    reason: str | None = None

    @property
    def log_weights(self) -> Tensor:
        """Log weights log p(x|z) + log p(z) - log q(z|x), shape (K, B); NaN if there is a `reason`."""
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
    """Return log importance weights (K, B) of K samples of the guide, float64, in nats.

    They are the sums of the terms of `log_weight_terms`, where all arguments but `shared` are described in full.

    Args:
        model: Model p(x, z).
        guide: Guide q(z|x).
        x: Images (B, ...), a tuple of positional arguments, or a `Batch`.
        num_samples: Number of weights per image, K.
        chunk: Particles scored at once.
        seed: Random seed. ``None`` uses fresh entropy.
        backend: Backend that evaluates the program.
        shared: ``"sampled"`` supports latents shared by all images (global latents). They are sampled like the others,
            and the weights are joint ones of the batch, shape (K,), whose log-mean estimates log p(x_1, ..., x_B).

    Raises:
        ValueError: `shared` is unknown, or as `log_weight_terms`.

    Example:
        With the exact posterior as the guide, every weight is p(x) = N(x; 0, 2 I), here 1 / (4 pi):

        >>> import pyro, pyro.distributions as dist, torch
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5).to_event(1))
        >>> log_weights(model, guide, torch.zeros(3, 2), num_samples=2, seed=0)
        tensor([[-2.5310, -2.5310, -2.5310],
                [-2.5310, -2.5310, -2.5310]], dtype=torch.float64)
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
    """Sample K particles per image from the guide and score them, with no lasting effect on the program.

    Parameters, random state and param store do not change. Modules run in evaluation mode. The log-densities of sites
    are evaluated in the precision of the network and summed in float64, without the scales of `poutine.scale` and
    without `pyro.factor`.

    Args:
        model: Model p(x, z).
        guide: Guide q(z|x).
        x: Images (B, ...) in the support of the observed site, a tuple of positional arguments, or a `Batch` of
            positional and keyword arguments.
        num_samples: Number of weights per image, K.
        chunk: Particles scored at once, halved if memory runs out. None chooses by the free memory. It does not affect
            the weights.
        seed: Random seed; the same seed gives the same weights, for the same images in the batch. ``None`` uses fresh
            entropy.
        backend: Backend that evaluates the program. For many batches, pass the same `CompiledBackend` to each call.

    Raises:
        ValueError: K or `chunk` is below 1; x is empty, non-finite or outside the support; no plate has the size of the
            batch; a latent is shared by all images; model and guide have different latent sites; or the log-density of
            an image depends on the other images.
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
    check_count("num_samples", num_samples, 1)
    if chunk is not None:
        check_count("chunk", chunk, 1)
    batch = Batch.of(x)
    if len(batch) == 0:
        raise UserError("x contains no images.")
    block = block_size(batch)
    backend = backend or EagerBackend()
    backend.start_batch()
    terms: list[tuple[Tensor, ...]] = []
    no_weights_reason: str | None = None
    with torch.no_grad(), read_only(model, guide, x=batch, seed=seed, validate=False):
        description, model_trace, single_layouts = check_programs(model, guide, batch, backend, joint=joint)
        # All particles of a deterministic guide are identical: one is scored, and its terms are repeated K times.
        num_particles = 1 if description.deterministic else num_samples
        layouts = choose_layouts(model, guide, batch, num_particles) if num_particles > 1 else single_layouts
        # A particle is scored at every state of the latents that the model sums out, which multiplies its memory.
        chunk = chunk or chunk_size(batch, count_states(layouts.model.summed))
        scorer = Scorer(model, batch, backend, layouts.model, chunk)
        enumerated = [site.name for site in layouts.guide.enumerated]
        states = count_states(layouts.guide.enumerated)
        # A whole block is sampled before its chunks are scored, so that the noise depends only on K and the batch size,
        # not on memory or `chunk`.
        for start in range(0, num_particles, block):
            size = min(block, num_particles - start)
            values, log_q = backend.draw(guide, batch, size, layouts.guide)
            # States that the guide enumerates are summed over instead of sampled. Their q(y|x) cancels in
            # sum_y q(y|x) p(x, z, y) / (q(y|x) q(z|x, y)).
            log_q = {name: term for name, term in log_q.items() if name not in enumerated}
            chunk_terms = list(scorer.score(values, log_q, size * states))
            no_weights_reason = no_weights_reason or outside_prior_reason(
                model_trace, values, torch.cat([log_prior for _, log_prior, _ in chunk_terms])
            )
            terms += [_sum_over_states(chunk_terms, states)] if enumerated else chunk_terms
    log_p, log_prior, log_posterior = (torch.cat(column).expand(num_samples, -1) for column in zip(*terms, strict=True))
    check_finite(batch.x, log_p, log_prior, log_posterior)
    if description.no_latent_density:
        log_prior = log_posterior = torch.full_like(log_p, torch.nan)
    return LogWeightTerms(log_p, log_prior, log_posterior, description.no_density_reason or no_weights_reason)


def _sum_over_states(chunks: list[tuple[Tensor, ...]], states: int) -> tuple[Tensor, ...]:
    """Sum weights over the S states y that the guide enumerates: terms (S * K, B) to terms of log sum_y w_y (K, B).

    With r_y = w_y / sum_y w_y, the sum is E_r[log p(x|z,y)] + E_r[log p(z,y)] - E_r[log q(z|x,y) + log r_y]. These are
    the terms of a guide with the optimal q(y|x), which is r.
    """
    log_p, log_prior, log_posterior = (
        torch.cat(column).unflatten(0, (states, -1)) for column in zip(*chunks, strict=True)
    )
    log_w = log_p + log_prior - log_posterior
    total = log_w.logsumexp(0)
    # If all states are impossible, uniform r keeps the sum at minus infinity instead of NaN.
    log_probs = torch.where(total == -torch.inf, -math.log(states), log_w - total)
    probs = log_probs.exp()
    terms = (log_p, log_prior, log_posterior + log_probs)
    return tuple(torch.where(probs > 0, probs * term, 0.0).sum(0) for term in terms)
