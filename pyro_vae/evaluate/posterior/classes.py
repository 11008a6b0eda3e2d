r"""Discrete latents given the image: p(y | x) by importance sampling, exact where no other latent is drawn.

With the particles z_k of an image and the joint values y of what is summed out,

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
    """Estimate p(y | x) of the discrete latents that are summed out: those that the guide enumerates or does not draw.

    Args:
        model: the generative program, p(x, z, y).
        guide: its guide, q(z, y | x) or q(z | x).
        x: images (B, ...), or the arguments of the programs, as in `log_weights`.
        num_samples: K, particles of each image.
        seed: of the draws.

    Returns:
        {site: (B, S)}, float64: the probabilities of the S values of each image, in the order of `enumerate_support`;
        of a site with several elements in the order of the numbers whose digits they are, the first element the last.

    Raises:
        ValueError: no latent is summed out, there are no log weights, or as `log_weights`.
    """
    if num_samples < 1:
        raise UserError(f"num_samples is {num_samples}; it must be at least 1.")
    batch = Batch.of(x)
    with torch.no_grad(), read_only(model, guide, x=batch, seed=seed, purpose="classes", validate=False):
        description, _, layouts = check_programs(model, guide, batch, EagerBackend(), joint=False)
        if description.no_density_reason:
            raise UserError(f"There is no p(y | x): {description.no_density_reason}.")
        sites = (*layouts.model.summed, *layouts.guide.enumerated)
        if not sites:
            raise UserError(
                "No latent is summed out: leave a discrete one out of the guide, or mark it there, "
                'infer={"enumerate": "parallel"}.'
            )
        layouts = choose_layouts(model, guide, batch, num_samples)
        size = max(1, rows_at_once(batch) // count_states(sites))
        total = torch.full((), -torch.inf, dtype=torch.float64, device=batch.device)
        for start in range(0, num_samples, size):
            p, q = trace_model_and_guide(model, guide, batch, min(size, num_samples - start), layouts)
            total = torch.logaddexp(total, _log_weights(p, q).logsumexp(1))
        probs = total.softmax(0)
    return _of_sites(probs, sites)


def discrete_values(model: Program, guide: Program, x: Data) -> dict[str, Tensor]:
    """Return every joint value of the latents that are summed out, {site: (S, ...)}; empty where none is.

    Args:
        model: as in `posterior_probs`.
        guide: as in `posterior_probs`.
        x: images (B, ...).
    """
    batch = Batch.of(x)
    with torch.no_grad(), read_only(model, guide, x=batch, seed=0, validate=False):
        layouts = choose_layouts(model, guide, batch, 1)
    values = joint_values((*layouts.model.summed, *layouts.guide.enumerated), batch.device)
    return {name: value.flatten(0, 2) for name, value in values.items()}


def _log_weights(p: ParticleTrace, q: ParticleTrace) -> Tensor:
    """Return log w_ky (S, K, B), the values of what the guide does not draw outside."""
    log_p = sum(p.state_terms().values())
    drawn = [term for name, term in q.terms(guide=True).densities.items() if name not in q.enumerated]
    log_w = torch.as_tensor(log_p).unflatten(0, (count_states(p.layout.summed), -1)) - sum(drawn)
    return log_w.unflatten(1, (count_states(q.layout.enumerated), -1)).flatten(0, 1)


def _of_sites(probs: Tensor, sites: tuple[FiniteSite, ...]) -> dict[str, Tensor]:
    """Return the probabilities of each site (B, S) from those of the joint values (S, B)."""
    by_site = probs.unflatten(0, [site.size for site in sites])
    return {
        site.name: by_site.sum([dim for dim in range(len(sites)) if dim != axis]).T if len(sites) > 1 else by_site.T
        for axis, site in enumerate(sites)
    }
