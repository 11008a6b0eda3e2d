r"""What is maximised: lower bounds on log p(x), each image its own, as Pyro ELBO objects.

With K particles z_k ~ q(z|x) and log w_k = log p(x, z_k) - log q(z_k|x), in nats,

    ELBO    E[ log w ]                                   <=  log p(x)
    IWAE    E[ log (1/K) sum_k w_k ]     ELBO  <=  IWAE  <=  log p(x)

Gradients are pathwise (reparameterized). The loss is minus the objective summed over the batch, the
convention of `pyro.infer.Trace_ELBO`, and nothing in a step waits for the device.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer import Trace_ELBO
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vae.infer.known import Known
from pyro_vae.infer.particles import Particles, draw_particles
from pyro_vae.trace import Batch, Layouts, Program


class Objective(Trace_ELBO):
    """A pathwise objective that takes the place of `pyro.infer.Trace_ELBO` in any `pyro.infer.SVI`.

    The images of a batch stand in one data plate, so that each has a bound of its own. Scales of `poutine.scale` and of
    mini-batch plates weigh the terms of the loss as in stock Pyro; the ELBO beside it stays the true one. Factors, and
    what a guide observes, are added to the loss and are no densities.

    Args:
        num_particles: K.
    """

    weighs_sites = False
    """Whether each site may have a scale of its own, which multiplies its term; otherwise all have one in common."""
    scores_again = False
    """Whether the programs are scored a second time at the same particles."""
    reads_prior = False
    """Whether the distribution of a latent in the model is read, beside its density."""
    one_layout = False
    """Whether the distributions of model and guide are compared with each other, and so must have one layout."""

    def __init__(self, num_particles: int = 1) -> None:
        if num_particles < 1:
            raise ValueError(f"num_particles is {num_particles}; it must be at least 1.")
        super().__init__(num_particles=num_particles, max_plate_nesting=1, vectorize_particles=True)
        self.known = Known()

    @abstractmethod
    def objective(self, particles: Particles) -> Tensor:
        """Map the terms of the particles (K, B) to the objective of each image (B,), in nats."""

    def at_step(self, step: int) -> None:
        """Prepare for a step; its number counts from 0."""

    def bounds(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Estimate the objective and the ELBO of each image from the same particles.

        Args:
            model: program of p(x, z).
            guide: program of q(z|x).
            *args: of the programs, or one `Batch`.
            **kwargs: of the programs.

        Returns:
            (objective (B,), ELBO (B,)) in nats; the ELBO carries no gradient, and is NaN where there is none.

        Raises:
            ValueError: as `draw_particles`; or the sites have scales, or latents that all images share, of which this
                objective cannot make a bound of each image.
        """
        batch = Batch.called_with(*args, **kwargs)
        number = self.num_particles
        fact = self.known.of(model, guide, batch, number, one_layout=self.one_layout)
        particles = draw_particles(
            model, guide, batch, number, layouts=fact.layouts, described=fact.described, again=self.scores_again
        )
        fact.described = particles.described
        layouts = Layouts(particles.p.layout, particles.q.layout)
        if layouts.repeat:
            fact.layouts = layouts
            self._check_summed(particles)
        if self.weighs_sites:
            objective = self.objective(particles)
        else:
            objective = self._common_scale(particles) * self.objective(particles)
        if particles.of_p.losses or particles.of_q.losses:
            objective = objective + particles.losses.mean(0)
        return objective, particles.elbo

    def _check_summed(self, particles: Particles) -> None:
        """Refuse what is no sum over the values of a discrete latent.

        Raises:
            ValueError: names the site and the objective.
        """
        (name, *_) = (*particles.p.summed, *particles.q.enumerated)
        if self.reads_prior or (self.scores_again and particles.q.enumerated):
            raise ValueError(f"Site {name!r} is summed out, which {type(self).__name__} cannot do: use ELBO or IWAE.")

    def _common_scale(self, particles: Particles) -> float:
        """Return the one scale of all sites, as of a mini-batch plate; refuse what has no bound of each image."""
        name = type(self).__name__
        if shared := particles.described.shared:
            raise ValueError(
                f"Site {shared[0]!r} is shared by all images, which {name} cannot bound one by one: use ELBO."
            )
        p, q = particles.p, particles.q
        sites = [(n, s) for run in (p, q) for n, s in run.sites.items() if n in particles.log_p or n in particles.log_q]
        for site_name, site in sites:
            if isinstance(site["scale"], Tensor) or site["scale"] != sites[0][1]["scale"]:
                raise ValueError(
                    f"Site {site_name!r} has a scale of its own, and {name} is no sum over sites: use ELBO, or "
                    "BetaELBO for a weight of the rate."
                )
        return float(sites[0][1]["scale"]) if sites else 1.0

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Return minus the objective, summed over the batch, in nats; differentiable."""
        return -self.bounds(model, guide, *args, **kwargs)[0].sum()

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Return the detached loss, after adding its gradients to the parameters."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return loss.detach()

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss without gradients."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs)


class ELBO(Objective):
    """The evidence lower bound, E_q[log p(x, z) - log q(z|x)], averaged over K particles.

    Kingma, Welling, "Auto-Encoding Variational Bayes", ICLR 2014 (https://arxiv.org/abs/1312.6114).
    """

    weighs_sites = True

    def objective(self, particles: Particles) -> Tensor:
        """Return the mean over particles."""
        return particles.weighed.mean(0)


class IWAE(Objective):
    """The importance-weighted bound of each image, E_q[log (1/K) sum_k w_k].

    Burda, Grosse, Salakhutdinov, "Importance Weighted Autoencoders", ICLR 2016
    (https://arxiv.org/abs/1509.00519).
    """

    def objective(self, particles: Particles) -> Tensor:
        """Return the log of the mean weight."""
        return _log_mean(particles.log_w)


class Renyi(Objective):
    """The variational Renyi bound of each image, 1/(1 - alpha) E_q[log (1/K) sum_k w_k^(1 - alpha)].

    It lies between the ELBO (alpha -> 1) and the IWAE bound (alpha = 0). Li, Turner, "Renyi Divergence
    Variational Inference", NeurIPS 2016 (https://arxiv.org/abs/1602.02311).

    Args:
        num_particles: K.
        alpha: in [0, 1).
    """

    def __init__(self, num_particles: int = 1, alpha: float = 0.5) -> None:
        super().__init__(num_particles)
        if not 0 <= alpha < 1:
            raise ValueError(f"alpha is {alpha}; a lower bound needs 0 <= alpha < 1.")
        self.alpha = alpha

    def objective(self, particles: Particles) -> Tensor:
        """Return the log of the mean power of the weights, per unit of 1 - alpha."""
        power = 1 - self.alpha
        return _log_mean(power * particles.log_w) / power


class BetaELBO(Objective):
    """E_q[log p(x|z)] - beta E_q[log q(z|x) - log p(z)], beta rising linearly to its value over the first steps.

    Higgins et al., "beta-VAE", ICLR 2017; Bowman et al., "Generating Sentences from a Continuous Space", CoNLL
    2016 (https://arxiv.org/abs/1511.06349) for the warm-up. The ELBO beside it stays the true one.

    Args:
        num_particles: K.
        beta: weight of the rate after the warm-up.
        warmup_steps: steps over which it rises; 0 starts at its value.
    """

    weighs_sites = True

    def __init__(self, num_particles: int = 1, beta: float = 1.0, warmup_steps: int = 0) -> None:
        super().__init__(num_particles)
        self.final_beta = nonnegative("beta", beta)
        self.warmup_steps = warmup_steps
        self.beta = torch.tensor(0.0)  # a tensor, so that no graph of a step freezes it
        self.at_step(0)

    def at_step(self, step: int) -> None:
        """Set beta to its value at a step."""
        part = min(1.0, (step + 1) / (self.warmup_steps + 1))
        self.beta.fill_(self.final_beta * part)

    def objective(self, particles: Particles) -> Tensor:
        """Return minus distortion and beta times the rate, averaged over particles."""
        self.beta = self.beta.to(particles.x.device)
        return (particles.weighed_likelihood - self.beta * particles.weighed_ratio).mean(0)


class MeanFieldELBO(Objective):
    """The ELBO with the KL divergence from prior to posterior in closed form, E_q[log p(x|z)] - KL(q(z|x) || p(z)).

    Raises:
        ValueError: at the first use, where torch knows no closed form, or a program has several latent sites,
            whose divergence depends on what is drawn. Nothing falls back to Monte Carlo.
    """

    weighs_sites = True
    reads_prior = True
    one_layout = True

    def objective(self, particles: Particles) -> Tensor:
        """Return the expected log-likelihood minus the divergence, masked and scaled as the guide's site is."""
        if shared := particles.described.shared:
            raise ValueError(f"Site {shared[0]!r} is shared by all images, which have no analytic KL each; use elbo.")
        drawn, latents = particles.q.drawn, particles.q.latents
        if len(drawn) != 1 or drawn != latents:
            raise ValueError(f"The analytic KL is of one latent site, and this program has {len(drawn)}.")
        (name,) = latents
        delta = particles.q.deltas.get(name)
        if delta is not None and not particles.described.lacks_latent:
            raise ValueError(f"{name!r} is a Delta that holds a draw, whose KL has no closed form; use elbo.")
        priors = {id(site): prior for site, prior in zip(particles.q.each(name), particles.p.each(name), strict=True)}

        def divergence(site: Any) -> Tensor:
            q, p = site["fn"], priors[id(site)]["fn"]
            try:
                value = kl_divergence(q, p)
            except NotImplementedError as error:
                kinds = " and ".join(type(getattr(d, "base_dist", d)).__name__ for d in (q, p))
                raise ValueError(f"No closed form is known for the KL divergence of {kinds}; use elbo.") from error
            return scale_and_mask(value, site["scale"], site["mask"]).double()

        return (particles.weighed_likelihood - particles.q.per_image(name, divergence)).mean(0)


def nonnegative(what: str, value: float) -> float:
    """Return a weight or a floor, or raise ValueError where it is negative or not finite."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{what} is {value}; it must be a number of 0 or more.")
    return value


def _log_mean(log_values: Tensor) -> Tensor:
    return log_values.logsumexp(0) - math.log(len(log_values))
