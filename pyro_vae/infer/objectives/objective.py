r"""What every objective is: the loss of a step as a Pyro ELBO object, made of K particles of each image.

Gradients are pathwise (reparameterized). The loss is minus the objective summed over the batch, the
convention of `pyro.infer.Trace_ELBO`, and nothing in a step waits for the device.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.infer.objectives.known import FactCache
from pyro_vae.infer.objectives.particles import Particles, draw_particles
from pyro_vae.trace import Batch, Layouts, Program


class Objective(Trace_ELBO):
    """A pathwise objective that takes the place of `pyro.infer.Trace_ELBO` in any `pyro.infer.SVI`.

    The images of a batch stand in one data plate, so that each has a bound of its own. Scales of `poutine.scale` and of
    mini-batch plates weigh the terms of the loss as in stock Pyro; the ELBO beside it stays the true one. Factors, and
    what a guide observes, are added to the loss and are no densities.

    Args:
        num_particles: K.
    """

    allows_site_scales = False
    """Whether each site may have a scale of its own, which multiplies its term; otherwise all have one in common."""
    rescores = False
    """Whether the programs are scored a second time at the same particles."""
    reads_prior = False
    """Whether the distribution of a latent in the model is read, beside its density."""
    draws_from_prior = False
    """Whether the prior is drawn from, so that it must be a distribution with a sampler."""
    one_layout = False
    """Whether the distributions of model and guide are compared with each other, and so must have one layout."""

    def __init__(self, num_particles: int = 1) -> None:
        if num_particles < 1:
            raise UserError(f"num_particles is {num_particles}; it must be at least 1.")
        super().__init__(num_particles=num_particles, max_plate_nesting=1, vectorize_particles=True)
        self.fact_cache = FactCache()

    @abstractmethod
    def per_image(self, particles: Particles) -> Tensor:
        """Map the terms of the particles (K, B) to the objective of each image (B,), in nats."""

    def set_step(self, step: int) -> None:
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
        batch = Batch.from_call(*args, **kwargs)
        num_particles = self.num_particles
        fact = self.fact_cache.look_up(model, guide, batch, num_particles, one_layout=self.one_layout)
        particles = draw_particles(
            model,
            guide,
            batch,
            num_particles,
            layouts=fact.layouts,
            description=fact.description,
            rescores=self.rescores,
        )
        fact.description = particles.description
        layouts = Layouts(particles.p.layout, particles.q.layout)
        if layouts.repeat:
            fact.layouts = layouts
            self._check_summed(particles)
        if self.allows_site_scales:
            objective = self.per_image(particles)
        else:
            objective = self._common_scale(particles) * self.per_image(particles)
        if particles.p_terms.losses or particles.q_terms.losses:
            objective = objective + particles.losses.mean(0)
        return objective, particles.elbo

    def _check_summed(self, particles: Particles) -> None:
        """Refuse what is no sum over the values of a discrete latent.

        Raises:
            ValueError: names the site and the objective.
        """
        (name, *_) = (*particles.p.summed, *particles.q.enumerated)
        if self.reads_prior or (self.rescores and particles.q.enumerated):
            raise UserError(f"Site {name!r} is summed out, which {type(self).__name__} cannot do: use ELBO or IWAE.")

    def _common_scale(self, particles: Particles) -> float:
        """Return the one scale of all sites, as of a mini-batch plate; refuse what has no bound of each image."""
        name = type(self).__name__
        if shared := particles.description.shared:
            raise UserError(
                f"Site {shared[0]!r} is shared by all images, which {name} cannot bound one by one: use ELBO."
            )
        p, q = particles.p, particles.q
        sites = [(n, s) for run in (p, q) for n, s in run.sites.items() if n in particles.log_p or n in particles.log_q]
        for site_name, site in sites:
            if isinstance(site["scale"], Tensor) or site["scale"] != sites[0][1]["scale"]:
                raise UserError(
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


def require_nonnegative(name: str, value: float) -> float:
    """Return a weight or a floor, or raise ValueError where it is negative or not finite."""
    if not (math.isfinite(value) and value >= 0):
        raise UserError(f"{name} is {value}; it must be a number of 0 or more.")
    return value
