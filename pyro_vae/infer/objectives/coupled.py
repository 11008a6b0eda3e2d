r"""Objectives that couple the images of a batch: their value for one image depends on which others are beside it.

The ELBO beside them stays the true one, image by image.
"""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Independent, Normal
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.infer.objectives.bounds import BetaELBO
from pyro_vae.infer.objectives.objective import Objective, require_nonnegative
from pyro_vae.infer.objectives.particles import Particles


class FreeBits(Objective):
    """E_q[log p(x|z)] - sum_u max(free_bits, rate of unit u), the rate averaged over the batch.

    Up to the floor a latent unit costs nothing, so that it is not given up early. A site whose prior or posterior
    does not factorize over its D units is one group, with a floor of D times that. Kingma et al., "Improved
    Variational Inference with Inverse Autoregressive Flow", NeurIPS 2016 (https://arxiv.org/abs/1606.04934).

    Args:
        num_particles: K.
        free_bits: nats of each unit.
    """

    reads_prior = True

    def __init__(self, num_particles: int = 1, free_bits: float = 0.5) -> None:
        super().__init__(num_particles)
        self.free_bits = require_nonnegative("free_bits", free_bits)

    def per_image(self, particles: Particles) -> Tensor:
        """Return the log-likelihood less the floored rate of the batch."""
        if particles.q.drawn != particles.q.latents:
            raise UserError("The guide draws through auxiliary sites, whose rate is that of no unit: use elbo.")
        rate = sum(self._rate(particles, name) for name in particles.q.latents)
        return particles.log_likelihood.mean(0) - rate

    def _rate(self, particles: Particles, name: str) -> Tensor:
        q, p = (run.sites[name]["fn"] for run in (particles.q, particles.p))
        if all(isinstance(fn, Independent) and len(fn.event_shape) == 1 for fn in (q, p)):
            means = [run.per_image(name, _of_units, extra=1).mean((0, 1)) for run in (particles.q, particles.p)]
            return (means[0] - means[1]).clamp(min=self.free_bits).sum()
        together = (particles.log_q[name] - particles.log_p[name]).mean()
        return together.clamp(min=self.free_bits * q.event_shape.numel())


def refuse_masks(particles: Particles, name: str) -> None:
    """Refuse a latent some of whose images are masked, where an objective holds all images of a batch together.

    Raises:
        ValueError: names the site.
    """
    if any(run.sites[name]["mask"] is not None for run in (particles.p, particles.q)):
        raise UserError(f"Site {name!r} is masked, and this objective takes all images of a batch together: use elbo.")


def _of_units(site: Any) -> Tensor:
    """Return the log-density of each unit of a site, masked as the site is."""
    mask = site["mask"].unsqueeze(-1) if isinstance(site["mask"], Tensor) else site["mask"]
    return scale_and_mask(site["fn"].base_dist.log_prob(site["value"]), 1.0, mask).double()


class BetaTCVAE(BetaELBO):
    r"""The ELBO less beta - 1 times the total correlation, KL(q(z) || prod_u q(z_u)) of the aggregate posterior.

    The aggregate q(z) = mean_n q(z|x_n) over N training images is estimated from the batch: an image's own posterior
    counts 1/N and the others share the rest, which is unbiased for q(z) before the logarithm, and exact where the
    batch is the data set. Chen, Li, Grosse, Duvenaud, "Isolating Sources of Disentanglement in Variational
    Autoencoders", NeurIPS 2018 (https://arxiv.org/abs/1802.04942), minibatch stratified sampling.

    Args:
        num_particles: K.
        beta: weight of the total correlation after the warm-up; 1 is the ELBO.
        warmup_steps: steps over which it rises from 0.
        num_images: N.

    Raises:
        ValueError: at the first use, where the posterior is not a factorized Gaussian of one latent site.
    """

    allows_site_scales = False

    def __init__(self, num_particles: int = 1, beta: float = 1.0, warmup_steps: int = 0, *, num_images: int) -> None:
        super().__init__(num_particles, beta, warmup_steps)
        self.num_images = num_images

    def per_image(self, particles: Particles) -> Tensor:
        """Return the ELBO less the weighted total correlation."""
        self.beta = self.beta.to(particles.x.device)
        excess = self.beta - 1
        return (particles.log_w - excess * self.total_correlation(particles)).mean(0)

    def total_correlation(self, particles: Particles) -> Tensor:
        """Estimate log q(z) - sum_u log q(z_u) at every particle, (K, B)."""
        sites = particles.q.sites
        (q, *others) = (sites[name]["fn"] for name in particles.q.drawn)
        if others or not (isinstance(q, Independent) and isinstance(q.base_dist, Normal) and len(q.event_shape) == 1):
            raise UserError(
                "The total correlation is of one latent site with a factorized Gaussian posterior: use --posterior "
                "meanfield."
            )
        ((name, z),) = particles.q.values.items()
        refuse_masks(particles, name)
        batch_size = z.shape[1]
        # The posteriors are the same for all particles: those of the first are enough.
        loc = particles.q.per_image(name, lambda site: site["fn"].base_dist.loc, extra=1)[0].double()
        scale = particles.q.per_image(name, lambda site: site["fn"].base_dist.scale, extra=1)[0].double()
        log_stratified_weights = self.log_stratified_weights(batch_size).to(z.device)
        units = Normal(loc, scale).log_prob(z.double().unsqueeze(2))  # (K, B, B, D): each z under each posterior
        joint = (units.sum(-1) + log_stratified_weights).logsumexp(2)
        alone = (units + log_stratified_weights.unsqueeze(-1)).logsumexp(2).sum(-1)
        return joint - alone

    def log_stratified_weights(self, batch_size: int) -> Tensor:
        """Return the log of what the posterior of image j counts in the aggregate at a z of image i, (i, j)."""
        if batch_size == 1:
            return torch.zeros(1, 1)
        own_weight = 1 / self.num_images
        other_weight = (1 - own_weight) / (batch_size - 1)
        return torch.where(torch.eye(batch_size, dtype=torch.bool), own_weight, other_weight).log()
