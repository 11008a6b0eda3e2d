r"""What a program does with its latents: posterior moments and active units."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.trace import Program, draw, reading

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


def posterior_moments(guide: Program, x: Tensor, num_samples: int = 100, seed: int | None = None) -> Moments:
    """Estimate E_q[z|x] and Var_q[z|x] of all latent sites from S draws, sites flattened and joined."""
    with torch.no_grad(), reading(guide, x=x, seed=seed):
        values, _ = draw(guide, x, num_samples)
    if not values:
        empty = torch.empty(x.shape[0], 0)
        return Moments(empty, empty, num_samples)
    z = torch.cat([value.flatten(2) if value.dim() > 2 else value.unsqueeze(2) for value in values.values()], 2)
    return Moments(z.double().mean(0), z.double().var(0), num_samples)


def active_units(moments: Moments) -> int:
    """Count the units u with Var_x(E_q[u|x]) > 0.01, the criterion of Burda et al. (2016).

    The means are of S draws: what their noise adds to the variance over images is subtracted.
    """
    noise = moments.variance.mean(0) / moments.num_samples
    return int((moments.mean.var(0) - noise > _ACTIVE_VARIANCE).sum())
