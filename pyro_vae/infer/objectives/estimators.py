r"""Gradient estimators of lower variance: the same objective, another path of its gradient.

Both score the guide, or the model, a second time at the z that were drawn, through which no gradient flows. Hooks
on single sites would be biased for hierarchical guides, whose later sites depend on earlier ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vae.infer.objectives.bounds import ELBO, IWAE
from pyro_vae.infer.objectives.particles import Particles


class STL(ELBO):
    """The ELBO with the path derivative alone: "sticking the landing", zero variance at the exact posterior.

    Roeder, Wu, Duvenaud, "Sticking the Landing", NeurIPS 2017 (https://arxiv.org/abs/1703.09194).
    """

    rescores = True

    def per_image(self, particles: Particles) -> Tensor:
        """Return the ELBO, whose gradient leaves out the score of the guide."""
        value = super().per_image(particles)
        if not torch.is_grad_enabled():
            return value
        without_score = particles.weighted + particles.rescore_detached(particles.guide, weighted=True)
        return value.detach() + _nothing(without_score.mean(0))


class DReG(IWAE):
    """The IWAE bound with doubly reparameterized gradients.

    Tucker, Lawson, Gu, Maddison, "Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives", ICLR
    2019 (https://arxiv.org/abs/1810.04152).
    """

    rescores = True

    def per_image(self, particles: Particles) -> Tensor:
        """Return the bound; with normalized weights w, its gradient is that of w^2 log w + (w - w^2) log p(x, z)."""
        value = super().per_image(particles)
        if not torch.is_grad_enabled():
            return value
        w = particles.log_w.detach().softmax(0)
        model = particles.rescore_detached(particles.model)
        without_score = particles.log_w + particles.rescore_detached(particles.guide)
        surrogate = (w.square() * without_score + (w - w.square()) * model).sum(0)
        return value.detach() + _nothing(surrogate)


def _nothing(term: Tensor) -> Tensor:
    """Return zero with the gradient of the term."""
    return term - term.detach()
