r"""Posterior probabilities of discrete latents, p(y | x), by importance sampling; exact if no other latent is sampled.

With particles z_k of an image and the joint values y of the latents that are summed out,

    p(y | x) = sum_k w_ky / sum_k sum_y w_ky,    w_ky = p(x, z_k, y) / q(z_k | x, y).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.evaluate.likelihood.checks import check_programs
from pyro_vae.evaluate.likelihood.chunks import rows_at_once
from pyro_vae.trace import (
    Batch,
    Data,
    EagerBackend,
    ParticleTrace,
    Program,
    choose_layouts,
    read_only,
    trace_model_and_guide,
)
from pyro_vae.trace.enumeration import FiniteSite, count_states, joint_values


def posterior_probs(
    model: Program, guide: Program, x: Data, num_samples: int = 100, *, seed: int | None = None
) -> dict[str, Tensor]:
    """Estimate p(y | x) of the discrete latents that are summed out.

    These are the sites that the guide enumerates or does not sample.

    Args:
        model: Model p(x, z, y).
        guide: Guide q(z, y | x) or q(z | x).
        x: Images (B, ...), a tuple of positional arguments, or a `Batch`.
        num_samples: Particles per image, K.
        seed: Random seed. None uses fresh entropy.

    Returns:
        {site: (B, S)}, float64: probabilities of the S values of each image, in the order of `enumerate_support`. If a
        site has several elements, value s assigns them the digits of s, the least significant one to the first.

    Raises:
        ValueError: No latent is summed out, log weights are undefined, or as `log_weights`.
    """
    if num_samples < 1:
        raise UserError(f"num_samples is {num_samples}; it must be at least 1.")
    batch = Batch.of(x)
    with torch.no_grad(), read_only(model, guide, x=batch, seed=seed, purpose="classes", validate=False):
        description, _, layouts = check_programs(model, guide, batch, EagerBackend(), joint=False)
        if description.no_density_reason:
            raise UserError(f"p(y | x) is undefined: {description.no_density_reason}.")
        sites = (*layouts.model.summed, *layouts.guide.enumerated)
        if not sites:
            raise UserError(
                "No latent is summed out: omit a discrete site from the guide, or mark it there with "
                'infer={"enumerate": "parallel"}.'
            )
        layouts = choose_layouts(model, guide, batch, num_samples)
        size = max(1, rows_at_once(batch) // count_states(sites))
        total = torch.full((), -torch.inf, dtype=torch.float64, device=batch.device)
        for start in range(0, num_samples, size):
            p, q = trace_model_and_guide(model, guide, batch, min(size, num_samples - start), layouts)
            total = torch.logaddexp(total, _log_weights(p, q).logsumexp(1))
        probs = total.softmax(0)
    return _marginalize(probs, sites)


def discrete_values(model: Program, guide: Program, x: Data) -> dict[str, Tensor]:
    """Return every joint value of the latents that are summed out, {site: (S, ...)}; empty if there is none.

    Args:
        model: Model p(x, z, y).
        guide: Guide q(z, y | x) or q(z | x).
        x: Images (B, ...), a tuple of positional arguments, or a `Batch`.
    """
    batch = Batch.of(x)
    with torch.no_grad(), read_only(model, guide, x=batch, seed=0, validate=False):
        layouts = choose_layouts(model, guide, batch, 1)
    values = joint_values((*layouts.model.summed, *layouts.guide.enumerated), batch.device)
    return {name: value.flatten(0, 2) for name, value in values.items()}


def _log_weights(p: ParticleTrace, q: ParticleTrace) -> Tensor:
    """Return log w_ky (S, K, B); latents that the guide does not sample vary slowest over the S states."""
    log_p = sum(p.state_terms().values())
    drawn = [term for name, term in q.terms(guide=True).densities.items() if name not in q.enumerated]
    log_w = torch.as_tensor(log_p).unflatten(0, (count_states(p.layout.summed), -1)) - sum(drawn)
    return log_w.unflatten(1, (count_states(q.layout.enumerated), -1)).flatten(0, 1)


def _marginalize(probs: Tensor, sites: tuple[FiniteSite, ...]) -> dict[str, Tensor]:
    """Return the probabilities (B, S_i) of each site from those of the joint values (S, B)."""
    by_site = probs.unflatten(0, [site.size for site in sites])
    return {
        site.name: by_site.sum([dim for dim in range(len(sites)) if dim != axis]).T if len(sites) > 1 else by_site.T
        for axis, site in enumerate(sites)
    }
