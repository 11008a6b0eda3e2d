r"""Gradient estimators of lower variance: the same objectives with different gradients.

Let theta be the parameters of the model, and z_k = z(eps_k, phi) reparameterized samples of the guide q_phi(z|x), with
w_k = p_theta(x, z_k) / q_phi(z_k|x) and normalized weights v_k = w_k / sum_j w_j. The gradients are

    STL     phi      (1/K) sum_k  (d log w_k / dz_k) (dz_k / dphi)
            theta    (1/K) sum_k  d log p_theta(x, z_k) / dtheta
    DReG    phi      sum_k  v_k^2 (d log w_k / dz_k) (dz_k / dphi)
            theta    sum_k  v_k  d log p_theta(x, z_k) / dtheta

Neither contains the score d log q_phi(z|x) / dphi at fixed z. For the ELBO its expectation is zero; for IWAE it is
replaced by a second reparameterization, which squares the weights.

A surrogate s has these gradients, and `value.detach() + s - s.detach()` combines them with the value of the objective.
To cancel the score in s, the guide is scored again at the detached samples. Hooks on the gradients of single sites
would be biased for hierarchical guides, whose later sites depend on earlier ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vae.infer.objectives.bounds import ELBO, IWAE
from pyro_vae.infer.objectives.particles import Particles


class STL(ELBO):
    """The ELBO with only its path derivative, "sticking the landing", which has no variance at the exact posterior.

    Roeder, Wu, Duvenaud, "Sticking the Landing", NeurIPS 2017 (https://arxiv.org/abs/1703.09194).
    """

    rescores = True

    def per_image(self, particles: Particles) -> Tensor:
        """Return the ELBO, whose gradient omits the score of the guide."""
        value = super().per_image(particles)
        if not torch.is_grad_enabled():
            return value
        without_score = particles.weighted + particles.rescore_detached(particles.guide, weighted=True)
        return value.detach() + _zero_with_gradient(without_score.mean(0))


class DReG(IWAE):
    """The IWAE bound with doubly reparameterized gradients.

    Tucker, Lawson, Gu, Maddison, "Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives", ICLR
    2019 (https://arxiv.org/abs/1810.04152).
    """

    rescores = True

    def per_image(self, particles: Particles) -> Tensor:
        """Return the bound with the gradient of s = sum_k v_k^2 log w_k + (v_k - v_k^2) log p(x, z_k).

        The v_k are constants in s, log w_k has no score, and z_k is constant in the second term. So phi gets the factor
        v_k^2, and theta gets v_k^2 + (v_k - v_k^2) = v_k.
        """
        value = super().per_image(particles)
        if not torch.is_grad_enabled():
            return value
        v = particles.log_w.detach().softmax(0)
        model = particles.rescore_detached(particles.model)
        without_score = particles.log_w + particles.rescore_detached(particles.guide)
        surrogate = (v.square() * without_score + (v - v.square()) * model).sum(0)
        return value.detach() + _zero_with_gradient(surrogate)


def _zero_with_gradient(term: Tensor) -> Tensor:
    """Return a tensor of zeros with the gradient of `term`."""
    return term - term.detach()
