r"""Posterior means and moments of latent units, and the number of active units.

A unit u is active if Var_x(E_q[u|x]) > 0.01: Burda, Grosse, Salakhutdinov, "Importance Weighted Autoencoders", ICLR
2016 (https://arxiv.org/abs/1509.00519). With means m_n of S posterior samples, whose variances are v_n, the variance of
the m_n over N images also contains the Monte Carlo noise, E[Var_n(m_n)] = Var_x(E_q[u|x]) + E_x[Var_q(u|x)] / S. The
unbiased estimate is therefore

    Var_n(m_n)  -  (1/N) sum_n v_n / S.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.trace import Batch, Data, ParticleTrace, Program, derive_seed, read_only, trace_particles
from pyro_vae.trace.shapes import to_particles

_ACTIVE_VARIANCE = 0.01


class Moments(NamedTuple):
    """Mean and variance over S posterior samples of every latent unit, shape (N, units) each."""

    mean: Tensor
    variance: Tensor
    num_samples: int

    @staticmethod
    def concatenate(moments: Iterable[Moments]) -> Moments:
        """Concatenate the moments of several batches of images."""
        moments = list(moments)
        means, variances = (torch.cat(column) for column in list(zip(*moments, strict=True))[:2])
        return Moments(means, variances, moments[0].num_samples)


def posterior_moments(guide: Program, x: Data, num_samples: int = 100, seed: int | None = None) -> Moments:
    """Estimate E_q[z|x] and Var_q[z|x] of all latent sites from S samples, float64.

    Args:
        guide: Guide q(z|x).
        x: Images (N, ...), a tuple of positional arguments, or a `Batch`.
        num_samples: Posterior samples per image, S.
        seed: Random seed. None uses fresh entropy.

    Returns:
        Moments (N, units), with the sites flattened and concatenated.

    Raises:
        ValueError: A latent site is shared by all images.
    """
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
    """Raise if the guide has latents that all images share: they are not units of one image.

    Raises:
        ValueError: A latent site is shared by all images.
    """
    if result.shared:
        raise UserError(f"Site {result.shared[0]!r} is shared by all images, so it is not a latent unit of one image.")


def analytic_mean(guide: Program, x: Data) -> Tensor | None:
    """Return E_q[z|x] (N, units) of a guide with one latent site and a closed-form mean, else None.

    The mean is differentiable. Guides with several sites return None: the mean of a site that is sampled given another
    one is conditional on that sample. So does a `Delta` that holds a value sampled before. Call inside `read_only`.
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
    """Return E_q[z|x] (N, units), float64: the `analytic_mean` if it exists, else the mean of 100 samples.

    Non-finite analytic means, such as those of a categorical latent, are treated as missing.
    """
    with torch.no_grad(), read_only(guide, x=x, seed=seed, purpose="means"):
        mean = analytic_mean(guide, x)
    if mean is None or not mean.isfinite().all():
        return posterior_moments(guide, x, seed=derive_seed(seed, "means")).mean
    return mean.double()


def active_units(moments: Moments) -> int:
    """Count the units u with Var_x(E_q[u|x]) > 0.01, corrected for the noise of the S samples behind each mean.

    A single image has no variance over images, and no active units.
    """
    if not moments.mean.numel() or len(moments.mean) == 1:
        return 0
    noise = moments.variance.mean(0) / moments.num_samples
    return int((moments.mean.var(0) - noise > _ACTIVE_VARIANCE).sum())
