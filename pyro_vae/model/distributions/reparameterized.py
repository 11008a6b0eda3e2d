r"""Distributions that a guide needs: drawn with pathwise gradients, and scored at any z."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.contrib.zuko import ZukoToPyro
from torch import Tensor
from torch.distributions import constraints


class FlowDistribution(ZukoToPyro):
    """A zuko flow over R^D as a Pyro distribution, which knows the density of what it has just drawn."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 -- as in torch
    support = constraints.real_vector

    def expand(self, batch_shape: Any, _instance: Any = None) -> FlowDistribution:
        """Return the same flow under more batch dimensions."""
        return FlowDistribution(self.dist.expand(torch.Size(batch_shape)))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw with pathwise gradients."""
        return self.dist.rsample(torch.Size(sample_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw without gradients."""
        with torch.no_grad():
            return self.rsample(sample_shape)


class ReparameterizedMixture(dist.MixtureSameFamily):
    r"""Mixture of diagonal Gaussians over R^D with pathwise gradients, for its weights too.

    A draw z has uniform conditional distribution functions u_d = F_d(z_d | z_<d; theta), each one of a mixture whose
    weights are the responsibilities of z_<d. With u held fixed,

        dz_d / dtheta = - (dF_d / dtheta) / f_d,

    z_<d moving with theta. Figurnov, Mohamed, Mnih, "Implicit Reparameterization Gradients", NeurIPS 2018
    (https://arxiv.org/abs/1805.08498). Pyro's `MixtureOfDiagNormals` is not used: its gradient of the weights is
    biased where the components differ in scale.

    Args:
        mixture_distribution: `Categorical`, batch shape (...), of C components.
        component_distribution: `Normal`, batch shape (..., C), event shape (D,).
    """

    has_rsample = True

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw (..., D)."""
        fixed = self.sample(torch.Size(sample_shape))
        if not torch.is_grad_enabled():
            return fixed
        components = self.component_distribution.base_dist
        log_weights = self.mixture_distribution.logits
        moving = []
        for d, z in enumerate(fixed.unsqueeze(-2).unbind(-1)):  # (..., 1) beside the components
            normal = dist.Normal(components.loc[..., d], components.scale[..., d])
            weights = log_weights.softmax(-1)
            # The nearer tail: its distribution function keeps its digits where the other one is all but 1.
            side = torch.where((weights * normal.cdf(z)).sum(-1, keepdim=True) > 0.5, -1.0, 1.0).detach()
            standardized = (z - normal.loc) / normal.scale
            tail = side * (weights * torch.special.ndtr(side * standardized)).sum(-1, keepdim=True)
            density = (weights * normal.log_prob(z).exp()).sum(-1, keepdim=True).detach()
            z = z - (tail - tail.detach()) / density
            log_weights = log_weights + normal.log_prob(z)
            moving.append(z)
        return torch.cat(moving, -1)
