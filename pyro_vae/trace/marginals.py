r"""Discrete latents, summed out exactly.

With the model run at each of the S joint values of a discrete latent c, beside the K particles of z,

    log p(x, z) = log sum_c p(x, z, c),    (K, B), in nats, float64.

The terms of single sites are those of the summed-out program, log p(z_1), log p(z_2 | z_1), log p(x | z), ..., latents
first: each is the difference of two such sums, so that they add up to the whole.

A guide that enumerates y (``infer={"enumerate": "parallel"}``) draws z at each of its values, as S * K particles, and

    log w = log sum_y p(x, z_y, y) / q(z_y | x, y),    ELBO = E sum_y q(y|x) log [p(x, z_y, y) / q(z_y, y | x)].
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.trace.elements import unwrap
from pyro_vae.trace.enumeration import FiniteSite
from pyro_vae.trace.plates import Site
from pyro_vae.trace.terms import Terms, is_unit


def sum_out(terms: Mapping[str, Tensor], latents: Collection[str], sites: Collection[FiniteSite]) -> dict[str, Tensor]:
    """Return the terms of the summed-out program.

    Args:
        terms: log-densities of the sites (S * K, B), in the order in which the model draws them.
        latents: its latent sites, those that are summed out included.
        sites: those that are.

    Returns:
        {site: log-density (K, B)} of all others: of a latent given the latents before it, of an observed site given the
        latents and the observed sites before it.
    """
    sizes = {site.name: site.size for site in sites}
    states = math.prod(sizes.values())
    marginals: dict[str, Tensor] = {}
    joint = before = torch.zeros((), dtype=torch.float64)
    unseen = math.log(states)  # each value of sites yet to come counts once in the sum
    for name in sorted(terms, key=lambda name: name not in latents):  # stable
        joint = joint + terms[name].unflatten(0, (states, -1))
        if name in sizes:
            unseen -= math.log(sizes[name])
            continue
        marginal = joint.logsumexp(0) - unseen
        impossible = torch.as_tensor(before == -torch.inf, device=marginal.device)
        marginals[name] = torch.where(impossible, -torch.inf, marginal - before)
        before = marginal
    return marginals


def sum_out_terms(
    terms: Terms, scales: Iterable[Any], latents: Collection[str], sites: Collection[FiniteSite]
) -> Terms:
    """Return the terms of the summed-out program, times the scale that its sites have in common.

    Args:
        terms: of the sites, each (S * K, B), in the order in which the model draws them.
        scales: of these sites.
        latents: as in `sum_out`.
        sites: as in `sum_out`.

    Raises:
        ValueError: scales or factors, of which no sum makes a density.
    """
    first = next(iter(sites)).name
    if terms.losses:
        raise UserError(
            f"Site {first!r} is summed out, and {next(iter(terms.losses))!r} is no density that could be: draw "
            f"{first!r} in the guide."
        )
    common, *others = scales
    if any(scale is not common and (isinstance(scale, Tensor) or scale != common) for scale in others):
        raise UserError(
            f"Site {first!r} is summed out of sites with different scales: give all the same, or draw it in the guide."
        )
    densities = sum_out(terms.densities, latents, sites)
    if is_unit(common):
        return Terms(densities, dict(densities), {})
    if isinstance(common, Tensor) and common.numel() > 1:
        raise UserError(f"Site {first!r} is summed out, and its scale has a number for each image: use one number.")
    return Terms(densities, {name: density * common for name, density in densities.items()}, {})


def mask_as_uniform(term: Tensor, site: Site, finite_site: FiniteSite) -> Tensor:
    """Return the log-density of a summed site, uniform over its values where it is masked: the sum is 1 there, too."""
    if site["mask"] is None:
        return term
    size = finite_site.num_element_values ** (
        math.prod(site["fn"].event_shape) // math.prod(unwrap(site["fn"])[0].event_shape)
    )
    return torch.where(torch.as_tensor(site["mask"], device=term.device), term, -math.log(size))
