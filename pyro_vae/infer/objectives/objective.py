r"""Base class of all objectives: the loss of a step as a Pyro ELBO object, computed from K particles of each image.

Gradients are pathwise (reparameterized). The loss is minus the objective, summed over the batch, as in
`pyro.infer.Trace_ELBO`. No step synchronizes with the device.
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

_LARGEST_WEIGHT = 1e30  # so that its product with the nats of an image does not overflow float32


class Objective(Trace_ELBO):
    """A pathwise objective, a drop-in replacement for `pyro.infer.Trace_ELBO` in any `pyro.infer.SVI`.

    The images of a batch are inside one data plate, so that each has a separate bound. Scales of `poutine.scale` and of
    mini-batch plates weight the terms of the loss as in stock Pyro; the reported ELBO is unweighted. Factors, and sites
    that a guide observes, are added to the loss but are not densities.

    Args:
        num_particles: Number of particles K of each image.
    """

    allows_site_scales = False
    """Whether sites may have different scales, each of which multiplies its term; otherwise all share one scale."""
    rescores = False
    """Whether the programs are scored a second time at the same particles."""
    reads_prior = False
    """Whether the model's distribution of a latent is used, not only its density."""
    draws_from_prior = False
    """Whether the prior is sampled, and so must have a sampler."""
    one_layout = False
    """Whether the distributions of model and guide are compared with each other, and so must have the same layout."""

    def __init__(self, num_particles: int = 1) -> None:
        if num_particles < 1:
            raise UserError(f"num_particles is {num_particles}; it must be at least 1.")
        super().__init__(num_particles=num_particles, max_plate_nesting=1, vectorize_particles=True)
        self.fact_cache = FactCache()

    @abstractmethod
    def per_image(self, particles: Particles) -> Tensor:
        """Map the terms of the particles, shape (K, B), to the objective of each image, shape (B,), in nats."""

    def set_step(self, step: int) -> None:
        """Prepare for a step, whose index counts from 0."""

    def bounds(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Estimate the objective and the ELBO of each image from the same particles.

        Args:
            model: Callable that defines p(x, z).
            guide: Callable that defines q(z|x).
            *args: Positional arguments of the program, or one `Batch`.
            **kwargs: Keyword arguments of the program.

        Returns:
            (objective, ELBO), each of shape (B,), in nats. The ELBO has no gradient, and is NaN if it is undefined.

        Raises:
            ValueError: As `draw_particles`. Also if scales of sites, or latents shared by all images, leave this
                objective without a bound for each image.
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
        """Raise if the objective does not support summation over a discrete latent.

        Raises:
            ValueError: Names the site and the objective.
        """
        (name, *_) = (*particles.p.summed, *particles.q.enumerated)
        if self.reads_prior or (self.rescores and particles.q.enumerated):
            raise UserError(
                f"Site {name!r} is summed out, which {type(self).__name__} cannot handle: use ELBO or IWAE."
            )

    def _common_scale(self, particles: Particles) -> float:
        """Return the scale shared by all sites, e.g. of a mini-batch plate; raise if an image has no bound."""
        name = type(self).__name__
        if shared := particles.description.shared:
            raise UserError(
                f"Site {shared[0]!r} is shared by all images, so that {name} has no bound for each of them: use ELBO."
            )
        p, q = particles.p, particles.q
        sites = [(n, s) for run in (p, q) for n, s in run.sites.items() if n in particles.log_p or n in particles.log_q]
        for site_name, site in sites:
            if isinstance(site["scale"], Tensor) or site["scale"] != sites[0][1]["scale"]:
                raise UserError(
                    f"Site {site_name!r} has a separate scale, but {name} is not a sum over sites: use ELBO, or "
                    "BetaELBO to weight the rate."
                )
        return float(sites[0][1]["scale"]) if sites else 1.0

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss, minus the objective summed over the batch, in nats; differentiable."""
        return -self.bounds(model, guide, *args, **kwargs)[0].sum()

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Add the gradients of the loss to the parameters, and return the loss, detached."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return loss.detach()

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss without gradients."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs)


def require_nonnegative(name: str, value: float) -> float:
    """Return a value, or raise ValueError if it is negative, non-finite, or too large for a weight in float32."""
    if not (math.isfinite(value) and value >= 0):
        raise UserError(f"{name} is {value}; it must be a finite number, 0 or larger.")
    if value > _LARGEST_WEIGHT:
        raise UserError(f"{name} is {value}; it must be at most {_LARGEST_WEIGHT:g}.")
    return value
