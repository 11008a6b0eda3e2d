r"""What a program does with its latents: posterior means and moments, active units."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.trace import Batch, Data, ParticleTrace, Program, read_only, trace_particles
from pyro_vae.trace.shapes import to_particles

_ACTIVE_VARIANCE = 0.01


class Moments(NamedTuple):
    """Mean and variance over S posterior draws of every latent unit, (N, units) each."""

    mean: Tensor
    variance: Tensor
    num_samples: int

    @staticmethod
    def concatenate(moments: Iterable[Moments]) -> Moments:
        """Join the moments of several batches of images."""
        moments = list(moments)
        means, variances = (torch.cat(column) for column in list(zip(*moments, strict=True))[:2])
        return Moments(means, variances, moments[0].num_samples)


def posterior_moments(guide: Program, x: Data, num_samples: int = 100, seed: int | None = None) -> Moments:
    """Estimate E_q[z|x] and Var_q[z|x] of all latent sites from S draws, sites flattened and joined."""
    with torch.no_grad(), read_only(guide, x=x, seed=seed, purpose="moments"):
        result = trace_particles(guide, x, num_samples)
        refuse_shared(result)
        values = result.values
    if not values:
        empty = torch.empty(len(Batch.of(x)), 0)
        return Moments(empty, empty, num_samples)
    z = torch.cat([value.reshape(*value.shape[:2], -1) for value in values.values()], 2)
    return Moments(z.double().mean(0), z.double().var(0), num_samples)


def refuse_shared(result: ParticleTrace) -> None:
    """Refuse a guide with latents that all images share: they are no units of one image.

    Raises:
        ValueError: names the site.
    """
    if result.shared:
        raise UserError(f"Site {result.shared[0]!r} is shared by all images: it is no latent unit of one of them.")


def analytic_mean(guide: Program, x: Data) -> Tensor | None:
    """Return E_q[z|x] (N, units) of a guide of one latent site whose distribution says its mean, otherwise None.

    It keeps its gradients. Several sites have no such mean: that of a site which is drawn given another one is the mean
    given that draw. Nor has a `Delta` that holds what has been drawn before. To be called inside `read_only`.
    """
    batch = Batch.of(x)
    result = trace_particles(guide, batch)
    if len(names := result.drawn) != 1 or names != result.latents:
        return None
    if any(delta.log_density.any() for delta in result.deltas.values()):
        return None
    try:
        mean: Tensor = result.sites[names[0]]["fn"].mean
    except (NotImplementedError, AttributeError):
        return None
    site = result.sites[names[0]]
    refuse_shared(result)
    return to_particles(mean.expand_as(site["value"]), site, result.frame).reshape(len(batch), -1)


def posterior_means(guide: Program, x: Data, seed: int | None = None) -> Tensor:
    """Return E_q[z|x] (N, units), float64: exact where there is a `analytic_mean`, otherwise of 100 draws.

    Means that are not finite, such as those of a categorical latent, are taken for none.
    """
    with torch.no_grad(), read_only(guide, x=x, seed=seed, purpose="means"):
        mean = analytic_mean(guide, x)
    if mean is None or not mean.isfinite().all():
        return posterior_moments(guide, x, seed=seed).mean
    return mean.double()


def active_units(moments: Moments) -> int:
    """Count the units u with Var_x(E_q[u|x]) > 0.01, the criterion of Burda et al. (2016).

    The means are of S draws: what their noise adds to the variance over images is subtracted. With one image there is
    no such variance, and no unit that is active.
    """
    if not moments.mean.numel() or len(moments.mean) == 1:
        return 0
    noise = moments.variance.mean(0) / moments.num_samples
    return int((moments.mean.var(0) - noise > _ACTIVE_VARIANCE).sum())
