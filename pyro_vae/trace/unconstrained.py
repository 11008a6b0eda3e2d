r"""The latents of a program as one unconstrained vector, for samplers that move in R^D.

A site with support S has z_s = T_s(u_s) with T_s = biject_to(S), and densities over u carry log |det dT_s / du_s|.
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


def _where(distribution: Any) -> Any:
    """Return the support of a latent; of an angle one turn, whose density torch repeats over all the real line."""
    element = getattr(distribution, "base_dist", distribution)
    if isinstance(element, VonMises):
        return constraints.independent(constraints.interval(-math.pi, math.pi), len(distribution.event_shape))
    return component_support(get_support(distribution))


@dataclass(frozen=True)
class _Site:
    name: str
    transform: Transform
    shape: torch.Size  # of an unconstrained value, without (K, B)
    dtype: torch.dtype  # of the program's values

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class UnconstrainedSpace:
    """The map between values {site: (K, B, ...)} and vectors u (K, B, D), float64.

    The map itself is taken in float64: near the edge of a simplex, float32 would lose the sticks that are left. The
    values are of the precision of the program.

    Args:
        result: a run of the program whose supports count, the model. Supports are those of this run: they may depend
            on the image, not on other latents.
        names: its latents that count; all where None.

    Raises:
        ValueError: a latent site is discrete; names it.
    """

    def __init__(self, result: ParticleTrace, names: Collection[str] | None = None) -> None:
        self.sites: list[_Site] = []
        for name, value in result.get_values(result.latents if names is None else list(names)).items():
            support = _where(result.sites[name]["fn"])
            if support.is_discrete:
                raise UserError(f"Latent site {name!r} is discrete: annealing moves through continuous latents only.")
            transform: Any = biject_to(support)
            with torch.no_grad():
                try:
                    shape = transform.inv(value[:1].double()).shape[2:]
                except RuntimeError as error:
                    raise UserError(
                        f"The support of latent site {name!r} differs along a plate inside that of the images: it "
                        "cannot be annealed."
                    ) from error
            self.sites.append(_Site(name, transform, shape, value.dtype))

    def join(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return u (K, B, D) of values {site: (K, B, ...)}."""
        parts = [site.transform.inv(values[site.name].double()) for site in self.sites]
        return torch.cat([part.reshape(*part.shape[:2], -1) for part in parts], 2)

    def split(self, u: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return ({site: (K, B, ...)}, log |det dz/du| (K, B) in nats, float64) of u (K, B, D)."""
        values = {}
        log_det = torch.zeros(u.shape[:2], dtype=torch.float64, device=u.device)
        for site, part in zip(self.sites, u.split([site.size for site in self.sites], 2), strict=True):
            part = part.reshape(*u.shape[:2], *site.shape)
            value = site.transform(part)
            terms = site.transform.log_abs_det_jacobian(part, value)
            log_det = log_det + terms.double().reshape(*u.shape[:2], -1).sum(-1)
            values[site.name] = value.to(site.dtype)
        return values, log_det
