r"""Distributions for guides, with pathwise gradients of samples and a log-density at any z."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.contrib.zuko import ZukoToPyro
from torch import Tensor
from torch.distributions import constraints


class FlowDistribution(ZukoToPyro):
    """A zuko flow over R^D as a Pyro distribution. The log-density of a sample from `pyro.sample` is cached."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 -- as in torch
    support = constraints.real_vector

    def expand(self, batch_shape: Any, _instance: Any = None) -> FlowDistribution:
        """Return the same flow with batch shape `batch_shape`."""
        return FlowDistribution(self.dist.expand(torch.Size(batch_shape)))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw with pathwise gradients."""
        return self.dist.rsample(torch.Size(sample_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw without gradients."""
        with torch.no_grad():
            return self.rsample(sample_shape)


class ReparameterizedMixture(dist.MixtureSameFamily):
    r"""Mixture of diagonal Gaussians over R^D with pathwise gradients, including those of its weights.

    For a sample z, the conditional CDFs u_d = F_d(z_d | z_<d; theta) are uniform. F_d is the CDF of a one-dimensional
    mixture whose weights are the responsibilities of the components given z_<d. Holding u fixed gives

        dz_d / dtheta = - (dF_d / dtheta) / f_d,

    with the density f_d, where dF_d / dtheta includes the dependence of z_<d on theta. Figurnov, Mohamed, Mnih,
    "Implicit Reparameterization Gradients", NeurIPS 2018 (https://arxiv.org/abs/1805.08498). Pyro's
    `MixtureOfDiagNormals` is not used, because its gradient of the weights is biased if components differ in scale.

    Args:
        mixture_distribution: `Categorical` over C components, batch shape (...).
        component_distribution: Independent `Normal`, batch shape (..., C), event shape (D,).
    """

    has_rsample = True

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw samples, shape (..., D), with pathwise gradients."""
        sample = self.sample(torch.Size(sample_shape))
        if not torch.is_grad_enabled():
            return sample
        components = self.component_distribution.base_dist
        log_weights = self.mixture_distribution.logits
        coordinates = []
        for d, z in enumerate(sample.unsqueeze(-2).unbind(-1)):  # z has shape (..., 1), to broadcast over components
            normal = dist.Normal(components.loc[..., d], components.scale[..., d])
            weights = log_weights.softmax(-1)
            # Use the smaller tail for accuracy: the larger one may round to 1 in float32.
            side = torch.where((weights * normal.cdf(z)).sum(-1, keepdim=True) > 0.5, -1.0, 1.0).detach()
            standardized = (z - normal.loc) / normal.scale
            tail = side * (weights * torch.special.ndtr(side * standardized)).sum(-1, keepdim=True)
            density = (weights * normal.log_prob(z).exp()).sum(-1, keepdim=True).detach()
            z = z - (tail - tail.detach()) / density  # value of z, implicit gradient
            log_weights = log_weights + normal.log_prob(z)
            coordinates.append(z)
        return torch.cat(coordinates, -1)
