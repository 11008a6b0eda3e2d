r"""Represent the latents of a program as one unconstrained vector, for samplers that move in R^D.

A site with support S has z_s = T_s(u_s) with T_s = biject_to(S), and densities over u include log |det dT_s / du_s|.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform, VonMises, biject_to, constraints

from pyro_vae.errors import UserError
from pyro_vae.trace.elements import component_support, get_support
from pyro_vae.trace.run_result import ParticleTrace


def _latent_support(distribution: Any) -> Any:
    """Return the support of a latent. Angles get one period, since torch's von Mises is periodic on the reals."""
    element = getattr(distribution, "base_dist", distribution)
    if isinstance(element, VonMises):
        return constraints.independent(constraints.interval(-math.pi, math.pi), len(distribution.event_shape))
    return component_support(get_support(distribution))


@dataclass(frozen=True)
class _Site:
    name: str
    support: Any
    transform: Transform  # from R^n to the support
    shape: torch.Size  # of the unconstrained value, without (K, B)
    dtype: torch.dtype  # of the values in the program

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class UnconstrainedSpace:
    """Bijection between values {site: (K, B, ...)} and vectors u (K, B, D), float64.

    The transforms are evaluated in float64: near the boundary of a simplex, float32 would lose the remaining stick
    lengths of stick breaking. Values are returned in the dtype of the program.

    Args:
        result: Run of the model, whose sites define the supports. Supports are fixed to those of this run: they may
            depend on the image but not on other latents.
        names: Names of the latents to include. None includes all.

    Raises:
        ValueError: A latent site is discrete, or its support differs along a plate inside the data plate.
    """

    def __init__(self, result: ParticleTrace, names: Collection[str] | None = None) -> None:
        self.sites: list[_Site] = []
        for name, value in result.get_values(result.latents if names is None else list(names)).items():
            support = _latent_support(result.sites[name]["fn"])
            if support.is_discrete:
                raise UserError(f"Latent site {name!r} is discrete: annealing supports only continuous latents.")
            transform: Any = biject_to(support)
            with torch.no_grad():
                try:
                    shape = transform.inv(value[:1].double()).shape[2:]
                except RuntimeError as error:
                    raise UserError(
                        f"The support of latent site {name!r} differs along a plate inside the data plate: it "
                        "cannot be annealed."
                    ) from error
            self.sites.append(_Site(name, support, transform, shape, value.dtype))

    def contains(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return whether all sites of a particle are in their supports, (K, B), for values {site: (K, B, ...)}."""
        inside = [site.support.check(values[site.name].double()) for site in self.sites]
        return torch.stack([check.reshape(*check.shape[:2], -1).all(-1) for check in inside]).all(0)

    def join(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return u, (K, B, D), for values {site: (K, B, ...)}. Values outside the support have no u; see `contains`."""
        parts = [site.transform.inv(values[site.name].double()) for site in self.sites]
        return torch.cat([part.reshape(*part.shape[:2], -1) for part in parts], 2)

    def split(self, u: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return ({site: (K, B, ...)}, log |det dz/du| (K, B) in nats, float64) for u (K, B, D)."""
        values = {}
        log_det = torch.zeros(u.shape[:2], dtype=torch.float64, device=u.device)
        for site, part in zip(self.sites, u.split([site.size for site in self.sites], 2), strict=True):
            part = part.reshape(*u.shape[:2], *site.shape)
            value = site.transform(part)
            terms = site.transform.log_abs_det_jacobian(part, value)
            log_det = log_det + terms.double().reshape(*u.shape[:2], -1).sum(-1)
            values[site.name] = value.to(site.dtype)
        return values, log_det
