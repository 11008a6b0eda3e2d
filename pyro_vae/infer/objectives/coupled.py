r"""Objectives that couple the images of a batch: the value for one image depends on the others.

The ELBO reported with them is not affected: it is still that of each image.
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
    """The ELBO with a floor under the rate of each latent unit, E_q[log p(x|z)] - sum_u max(free_bits, rate of unit u).

    The rate is averaged over the batch. Below the floor it has no gradient, which prevents units from collapsing early
    in training. A site whose prior or posterior does not factorize over its D units is one group, with a floor of
    D free_bits. Kingma et al., "Improved Variational Inference with Inverse Autoregressive Flow", NeurIPS 2016
    (https://arxiv.org/abs/1606.04934).

    Args:
        num_particles: Number of particles K.
        free_bits: Floor under the rate of each unit, in nats.
    """

    reads_prior = True

    def __init__(self, num_particles: int = 1, free_bits: float = 0.5) -> None:
        super().__init__(num_particles)
        self.free_bits = require_nonnegative("free_bits", free_bits)

    def per_image(self, particles: Particles) -> Tensor:
        """Return the log-likelihood minus the floored rate of the batch."""
        if particles.q.drawn != particles.q.latents:
            raise UserError("The guide has auxiliary sites, whose rate belongs to no latent unit: use elbo.")
        rate = sum(self._rate(particles, name) for name in particles.q.latents)
        return particles.log_likelihood.mean(0) - rate

    def _rate(self, particles: Particles, name: str) -> Tensor:
        q, p = (run.sites[name]["fn"] for run in (particles.q, particles.p))
        if all(isinstance(fn, Independent) and len(fn.event_shape) == 1 for fn in (q, p)):
            means = [run.per_image(name, _unit_terms, extra=1).mean((0, 1)) for run in (particles.q, particles.p)]
            return (means[0] - means[1]).clamp(min=self.free_bits).sum()
        joint_rate = (particles.log_q[name] - particles.log_p[name]).mean()
        return joint_rate.clamp(min=self.free_bits * q.event_shape.numel())


def refuse_masks(particles: Particles, name: str) -> None:
    """Raise if a latent site is masked, which an objective over the whole batch does not support.

    Raises:
        ValueError: Names the site.
    """
    if any(run.sites[name]["mask"] is not None for run in (particles.p, particles.q)):
        raise UserError(f"Site {name!r} is masked, but this objective needs all images of a batch: use elbo.")


def _unit_terms(site: Any) -> Tensor:
    """Return the log-density of each unit of a site, masked like the site."""
    mask = site["mask"].unsqueeze(-1) if isinstance(site["mask"], Tensor) else site["mask"]
    return scale_and_mask(site["fn"].base_dist.log_prob(site["value"]), 1.0, mask).double()


class BetaTCVAE(BetaELBO):
    r"""The ELBO minus (beta - 1) times the total correlation, KL(q(z) || prod_u q(z_u)), of the aggregate posterior.

    The aggregate posterior q(z) = mean_n q(z|x_n) over N training images is estimated from the batch: the posterior of
    the image itself has weight 1/N, and the others share the remainder. The estimate of q(z) is unbiased, its logarithm
    is not; both are exact if the batch is the data set. Chen, Li, Grosse, Duvenaud, "Isolating Sources of
    Disentanglement in Variational Autoencoders", NeurIPS 2018 (https://arxiv.org/abs/1802.04942), minibatch stratified
    sampling.

    Args:
        num_particles: Number of particles K.
        beta: Weight of the total correlation after the warm-up; 1 gives the ELBO.
        warmup_steps: Number of steps in which beta rises from 0.
        num_images: Number of training images N.

    Raises:
        ValueError: At the first use, if the posterior is not a factorized Gaussian of one latent site.
    """

    allows_site_scales = False

    def __init__(self, num_particles: int = 1, beta: float = 1.0, warmup_steps: int = 0, *, num_images: int) -> None:
        super().__init__(num_particles, beta, warmup_steps)
        self.num_images = num_images

    def per_image(self, particles: Particles) -> Tensor:
        """Return the ELBO minus the weighted total correlation."""
        self.beta = self.beta.to(particles.x.device)
        excess = self.beta - 1
        return (particles.log_w - excess * self.total_correlation(particles)).mean(0)

    def total_correlation(self, particles: Particles) -> Tensor:
        """Estimate log q(z) - sum_u log q(z_u) at every particle, shape (K, B)."""
        sites = particles.q.sites
        (q, *others) = (sites[name]["fn"] for name in particles.q.drawn)
        if others or not (isinstance(q, Independent) and isinstance(q.base_dist, Normal) and len(q.event_shape) == 1):
            raise UserError(
                "BetaTCVAE requires exactly one latent site with a factorized Gaussian posterior: use --posterior "
                "meanfield."
            )
        ((name, z),) = particles.q.values.items()
        refuse_masks(particles, name)
        batch_size = z.shape[1]
        # All particles have the same posteriors; use those of the first.
        loc = particles.q.per_image(name, lambda site: site["fn"].base_dist.loc, extra=1)[0].double()
        scale = particles.q.per_image(name, lambda site: site["fn"].base_dist.scale, extra=1)[0].double()
        log_stratified_weights = self.log_stratified_weights(batch_size).to(z.device)
        units = Normal(loc, scale).log_prob(z.double().unsqueeze(2))  # (K, B, B, D): each z under each posterior
        joint = (units.sum(-1) + log_stratified_weights).logsumexp(2)
        marginal = (units + log_stratified_weights.unsqueeze(-1)).logsumexp(2).sum(-1)
        return joint - marginal

    def log_stratified_weights(self, batch_size: int) -> Tensor:
        """Return the log weight of the posterior of image j in q(z) at a sample of image i, shape (B, B)."""
        if batch_size == 1:
            return torch.zeros(1, 1)
        own_weight = 1 / self.num_images
        other_weight = (1 - own_weight) / (batch_size - 1)
        return torch.where(torch.eye(batch_size, dtype=torch.bool), own_weight, other_weight).log()
