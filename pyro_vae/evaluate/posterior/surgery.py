r"""ELBO surgery: decompose the rate via the aggregate posterior q(z) = (1/N) sum_n q(z|x_n).

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

_ROWS = 20_000  # guide densities evaluated at once


@dataclass(frozen=True)
class ELBOSurgery:
    """Terms of the rate of N images in nats, shape (N,) each. Their means estimate the terms of the formula above.

    The aggregate posterior is that of these N images, including the image whose posterior the sample came from. The
    mutual information is therefore that of the index of an image and its code, at most log N. As an estimate for the
    data distribution it is biased downward, less so the further it is below log N; the marginal KL is biased upward by
    the same amount.

    Attributes:
        mutual_information: log q(z_n|x_n) - log q(z_n).
        marginal_kl: log q(z_n) - log p(z_n).
    """

    mutual_information: Array
    marginal_kl: Array

    @property
    def rate(self) -> Array:
        """Sum of both terms (N,), in nats."""
        return self.mutual_information + self.marginal_kl


def elbo_surgery(model: Program, guide: Program, x: Data, *, seed: int | None = None) -> ELBOSurgery:
    """Split the rate of images into mutual information and marginal KL, with one sample of each posterior.

    Args:
        model: Model p(x, z).
        guide: Guide q(z|x).
        x: Images (N, ...) in one batch, a tuple of positional arguments, or a `Batch`. N^2 densities of the guide are
            evaluated.
        seed: Random seed. None uses fresh entropy.

    Raises:
        ValueError: As `log_density`, or a latent site is shared by all images.
    """
    batch = Batch.of(x)
    require_per_image(model, guide, batch)
    num_images = len(batch)
    chunk = max(1, _ROWS // num_images)
    with torch.no_grad(), read_only(model, guide, x=batch, seed=seed, purpose="surgery", validate=False):
        values, log_q = draw(guide, batch, 1)
        if not values:  # no latents: the rate is zero
            return ELBOSurgery(np.zeros(num_images), np.zeros(num_images))
        sites = log_density(model, batch, values)
        log_prior = torch.stack([sites[name][0] for name in values]).sum(0)
        log_posterior = torch.stack(list(log_q.values())).sum(0)[0]
        layout = choose_layouts(model, guide, batch, 2).guide
        aggregate = []
        for indices in torch.arange(num_images, device=batch.device).split(chunk):
            # Pair each sample with every image: (chunk, N).
            pairs = {
                name: z[0, indices].unsqueeze(1).expand(-1, num_images, *z.shape[2:]) for name, z in values.items()
            }
            log_densities = torch.stack(list(log_density(guide, batch, pairs, layout).values())).sum(0)
            aggregate.append(log_densities.logsumexp(1) - math.log(num_images))
        log_aggregate = torch.cat(aggregate)
    return ELBOSurgery((log_posterior - log_aggregate).cpu().numpy(), (log_aggregate - log_prior).cpu().numpy())
