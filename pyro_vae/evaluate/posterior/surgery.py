r"""ELBO surgery: what the rate is made of, by the aggregate posterior q(z) = (1/N) sum_n q(z|x_n).

    rate = E_n KL(q(z|x_n) || p(z))  =  I(x; z)  +  KL(q(z) || p(z))

Hoffman, Johnson, "ELBO surgery: yet another way to carve up the variational evidence lower bound", NeurIPS workshop on
Advances in Approximate Bayesian Inference, 2016 (http://approximateinference.org/accepted/HoffmanJohnson2016.pdf).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from pyro_vae.trace import (
    Batch,
    Data,
    Program,
    choose_layouts,
    draw,
    log_density,
    read_only,
    require_per_image,
)

Array = np.ndarray

_ROWS = 20_000  # densities of the guide at once


@dataclass(frozen=True)
class ELBOSurgery:
    """Parts of the rate of N images, (N,) each, nats; their means are those of the formula above.

    The aggregate is that of these N images, the one a draw came from included. So the mutual information is that of
    the index of an image and its code: it cannot exceed log N, and is the less biased downwards, as an estimate for the
    data distribution, the farther it stays below; the marginal KL is biased upwards by as much.
    """

    mutual_information: Array
    marginal_kl: Array

    @property
    def rate(self) -> Array:
        """Their sum (N,)."""
        return self.mutual_information + self.marginal_kl


def elbo_surgery(model: Program, guide: Program, x: Data, *, seed: int | None = None) -> ELBOSurgery:
    """Split the rate of images into mutual information and marginal KL, from one draw of each posterior.

    Args:
        model: program of p(x, z).
        guide: program of q(z|x).
        x: images (N, ...), all in one batch; N^2 densities of the guide are taken.
        seed: of the draws.

    Raises:
        ValueError: as `log_density`.
    """
    batch = Batch.of(x)
    require_per_image(model, guide, batch)
    num_images = len(batch)
    at_once = max(1, _ROWS // num_images)
    with torch.no_grad(), read_only(model, guide, x=batch, seed=seed, purpose="surgery", validate=False):
        values, log_q = draw(guide, batch, 1)
        if not values:  # nothing is coded, and nothing costs
            return ELBOSurgery(np.zeros(num_images), np.zeros(num_images))
        sites = log_density(model, batch, values)
        log_prior = torch.stack([sites[name][0] for name in values]).sum(0)
        log_posterior = torch.stack(list(log_q.values())).sum(0)[0]
        layout = choose_layouts(model, guide, batch, 2).guide
        aggregate = []
        for chosen in torch.arange(num_images, device=batch.device).split(at_once):
            # Each chosen draw beside every image: (chosen, N).
            beside = {
                name: z[0, chosen].unsqueeze(1).expand(-1, num_images, *z.shape[2:]) for name, z in values.items()
            }
            log_densities = torch.stack(list(log_density(guide, batch, beside, layout).values())).sum(0)
            aggregate.append(log_densities.logsumexp(1) - math.log(num_images))
        log_aggregate = torch.cat(aggregate)
    return ELBOSurgery((log_posterior - log_aggregate).cpu().numpy(), (log_aggregate - log_prior).cpu().numpy())
