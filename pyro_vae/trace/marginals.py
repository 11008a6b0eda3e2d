r"""Sum out discrete latents exactly.

With the model evaluated at each of the S joint values of a discrete latent c, for each of the K particles of z,

    log p(x, z) = log sum_c p(x, z, c),    (K, B), in nats, float64.

The terms of single sites are those of the summed-out program, log p(z_1), log p(z_2 | z_1), ..., log p(x | z), with
latents first. Each is the difference of two such sums,

    log p(s_i | s_1, ..., s_{i-1}) = log sum_c p(s_1, ..., s_i, c) - log sum_c p(s_1, ..., s_{i-1}, c),

so that they add up to the total.

A guide that enumerates y (``infer={"enumerate": "parallel"}``) samples z at each value of y, as S * K particles, and

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
    """Return the log-densities of the summed-out program.

    Args:
        terms: Log-densities of the sites, each (S * K, B), in the order in which the model samples them.
        latents: Names of its latent sites, including those summed out.
        sites: The sites to sum out.

    Returns:
        {site: log-density (K, B)} of all other sites: of a latent given the preceding latents, of an observed site
        given the latents and the preceding observed sites.
    """
    sizes = {site.name: site.size for site in sites}
    states = math.prod(sizes.values())
    marginals: dict[str, Tensor] = {}
    joint = before = torch.zeros((), dtype=torch.float64)
    # The joint does not include discrete sites that come later, but is repeated at each of their values. The sum over
    # states then counts it once per value: subtract the log of their number.
    log_pending = math.log(states)
    for name in sorted(terms, key=lambda name: name not in latents):  # stable sort
        joint = joint + terms[name].unflatten(0, (states, -1))
        if name in sizes:
            log_pending -= math.log(sizes[name])
            continue
        marginal = joint.logsumexp(0) - log_pending
        # Below a prefix of probability 0 the difference would be -inf - (-inf) = NaN.
        impossible = torch.as_tensor(before == -torch.inf, device=marginal.device)
        marginals[name] = torch.where(impossible, -torch.inf, marginal - before)
        before = marginal
    return marginals


def sum_out_terms(
    terms: Terms, scales: Iterable[Any], latents: Collection[str], sites: Collection[FiniteSite]
) -> Terms:
    """Return the terms of the summed-out program, weighted by the scale that all its sites share.

    Args:
        terms: Terms of the sites, each (S * K, B), in the order in which the model samples them.
        scales: Scales of these sites.
        latents: See `sum_out`.
        sites: See `sum_out`.

    Raises:
        ValueError: There are loss terms or different scales, for which the sum is not a density.
    """
    first = next(iter(sites)).name
    if terms.losses:
        raise UserError(
            f"Site {first!r} is summed out, but {next(iter(terms.losses))!r} is not a density: sample {first!r} in the "
            "guide."
        )
    common, *others = scales
    if any(scale is not common and (isinstance(scale, Tensor) or scale != common) for scale in others):
        raise UserError(
            f"Site {first!r} is summed out of sites with different scales: use one scale or sample it in the guide."
        )
    densities = sum_out(terms.densities, latents, sites)
    if is_unit(common):
        return Terms(densities, dict(densities), {})
    if isinstance(common, Tensor) and common.numel() > 1:
        raise UserError(f"Site {first!r} is summed out, but its scale differs between images: use a single number.")
    return Terms(densities, {name: density * common for name, density in densities.items()}, {})


def mask_as_uniform(term: Tensor, site: Site, finite_site: FiniteSite) -> Tensor:
    """Return the log-density of a summed site, uniform where the site is masked: it still sums to 1."""
    if site["mask"] is None:
        return term
    size = finite_site.num_element_values ** (
        math.prod(site["fn"].event_shape) // math.prod(unwrap(site["fn"])[0].event_shape)
    )
    return torch.where(torch.as_tensor(site["mask"], device=term.device), term, -math.log(size))
