r"""Objectives that are evaluated for each image separately.

With K particles z_k ~ q(z|x) and log w_k = log p(x, z_k) - log q(z_k|x), in nats,

    ELBO    E[ log w ]                                   <=  log p(x)
    IWAE    E[ log (1/K) sum_k w_k ]     ELBO  <=  IWAE  <=  log p(x)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vae.errors import UserError
from pyro_vae.infer.objectives.objective import Objective, require_nonnegative
from pyro_vae.infer.objectives.particles import Particles


class ELBO(Objective):
    """The evidence lower bound, E_q[log p(x, z) - log q(z|x)], averaged over K particles.

    Kingma, Welling, "Auto-Encoding Variational Bayes", ICLR 2014 (https://arxiv.org/abs/1312.6114).

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
        >>> def guide(x):
        ...     scale = pyro.param("scale", torch.ones(2), constraint=dist.constraints.positive)
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, scale).to_event(1))
        >>> svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), ELBO(num_particles=10))
        >>> losses = [svi.step(torch.zeros(3, 2)) for _ in range(200)]
        >>> print(f"{pyro.param('scale').mean():.1f}")  # the exact posterior has scale 0.5**0.5
        0.7
    """

    allows_site_scales = True

    def per_image(self, particles: Particles) -> Tensor:
        """Return the mean of the (scaled) log weights over particles."""
        return particles.weighted.mean(0)


class IWAE(Objective):
    """The importance-weighted bound E_q[log (1/K) sum_k w_k].

    Burda, Grosse, Salakhutdinov, "Importance Weighted Autoencoders", ICLR 2016 (https://arxiv.org/abs/1509.00519).
    """

    def per_image(self, particles: Particles) -> Tensor:
        """Return the log of the mean weight."""
        return _log_mean(particles.log_w)


class Renyi(Objective):
    """The variational Renyi bound, E_q[log (1/K) sum_k w_k^(1 - alpha)] / (1 - alpha).

    It lies between the ELBO (alpha -> 1) and the IWAE bound (alpha = 0). Li, Turner, "Renyi Divergence Variational
    Inference", NeurIPS 2016 (https://arxiv.org/abs/1602.02311).

    Args:
        num_particles: Number of particles K.
        alpha: Order of the divergence, in [0, 1).

    Raises:
        ValueError: If `alpha` is outside [0, 1).
    """

    def __init__(self, num_particles: int = 1, alpha: float = 0.5) -> None:
        super().__init__(num_particles)
        if not 0 <= alpha < 1:
            raise UserError(f"alpha is {alpha}; a lower bound requires 0 <= alpha < 1.")
        self.alpha = alpha

    def per_image(self, particles: Particles) -> Tensor:
        """Return log((1/K) sum_k w_k^(1 - alpha)) / (1 - alpha)."""
        power = 1 - self.alpha
        return _log_mean(power * particles.log_w) / power


class BetaELBO(Objective):
    """The ELBO with a weighted rate, E_q[log p(x|z)] - beta E_q[log q(z|x) - log p(z)].

    beta rises linearly to its final value; the reported ELBO is unweighted. Higgins et al., "beta-VAE", ICLR 2017;
    Bowman et al., "Generating Sentences from a Continuous Space", CoNLL 2016 (https://arxiv.org/abs/1511.06349) for the
    warm-up.

    Args:
        num_particles: Number of particles K.
        beta: Weight of the rate after the warm-up.
        warmup_steps: Number of warm-up steps; with 0, beta has its final value from the start.
    """

    allows_site_scales = True

    def __init__(self, num_particles: int = 1, beta: float = 1.0, warmup_steps: int = 0) -> None:
        super().__init__(num_particles)
        self.final_beta = require_nonnegative("beta", beta)
        self.warmup_steps = warmup_steps
        self.beta = torch.tensor(0.0)  # a tensor, whose current value a recorded step reads
        self.set_step(0)

    def set_step(self, step: int) -> None:
        """Set beta to its value at a step."""
        fraction = min(1.0, (step + 1) / (self.warmup_steps + 1))
        self.beta.fill_(self.final_beta * fraction)

    def per_image(self, particles: Particles) -> Tensor:
        """Return the log-likelihood minus beta times the rate, averaged over particles."""
        self.beta = self.beta.to(particles.x.device)
        return (particles.weighted_likelihood - self.beta * particles.weighted_rate).mean(0)


class MeanFieldELBO(Objective):
    """The ELBO with a closed-form KL divergence, E_q[log p(x|z)] - KL(q(z|x) || p(z)).

    There is no Monte Carlo fallback.

    Raises:
        ValueError: At the first use, if torch has no closed form for the two distributions, or the program has several
            latent sites, whose divergence depends on the samples.
    """

    allows_site_scales = True
    reads_prior = True
    one_layout = True

    def per_image(self, particles: Particles) -> Tensor:
        """Return the log-likelihood minus the KL divergence, which is masked and scaled like the guide's site."""
        if shared := particles.description.shared:
            raise UserError(f"Site {shared[0]!r} is shared by all images, so that an image has no KL term; use elbo.")
        drawn, latents = particles.q.drawn, particles.q.latents
        if len(drawn) != 1 or drawn != latents:
            raise UserError(f"MeanFieldELBO supports exactly one latent site, and this program has {len(drawn)}.")
        (name,) = latents
        delta = particles.q.deltas.get(name)
        if delta is not None and not particles.description.no_latent_density:
            raise UserError(f"{name!r} is a Delta around a sample, whose KL has no closed form; use elbo.")
        priors = {
            id(site): prior
            for site, prior in zip(particles.q.in_each_trace(name), particles.p.in_each_trace(name), strict=True)
        }

        def divergence(site: Any) -> Tensor:
            q, p = site["fn"], priors[id(site)]["fn"]
            try:
                value = kl_divergence(q, p)
            except NotImplementedError as error:
                kinds = " and ".join(type(getattr(d, "base_dist", d)).__name__ for d in (q, p))
                raise UserError(f"No closed form is known for the KL divergence of {kinds}; use elbo.") from error
            return scale_and_mask(value, site["scale"], site["mask"]).double()

        return (particles.weighted_likelihood - particles.q.per_image(name, divergence)).mean(0)


def _log_mean(log_values: Tensor) -> Tensor:
    return log_values.logsumexp(0) - math.log(len(log_values))
