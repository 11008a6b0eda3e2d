r"""A learned mixture of Gaussians, p(z) = sum_c w_c N(z; m_c, diag(s_c^2))."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_vae.model.distributions.diagonal_normals import DiagonalNormalComponents


class GaussianMixture(nn.Module):
    """Mixture of diagonal Gaussians with learned weights, means and scales.

    Components are initialized close to N(0, I), with means drawn from N(0, 0.01 I): nearly identical, so that training
    differentiates them. Means initialized one unit apart in every dimension cost several nats that short training does
    not recover.

    Args:
        latent_dim: D, the latent dimension.
        num_components: C, the number of components.

    Example:
        >>> prior = GaussianMixture(latent_dim=2, num_components=3)
        >>> prior().sample((5,)).shape
        torch.Size([5, 2])
    """

    def __init__(self, latent_dim: int, num_components: int = 50) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.loc = nn.Parameter(0.1 * torch.randn(num_components, latent_dim))
        self.raw_scale = nn.Parameter(torch.full((num_components, latent_dim), 1.0).expm1().log())

    def classes(self) -> dist.Categorical:
        """Return p(c), the distribution of the component index, batch shape (), event shape ()."""
        return dist.Categorical(logits=self.logits)

    def component(self, c: Tensor) -> dist.TorchDistribution:
        """Return p(z|c) for component indices `c`, shape (...): batch shape (...), event shape (D,)."""
        return dist.Normal(self.loc[c], softplus(self.raw_scale)[c]).to_event(1)

    def forward(self) -> dist.Distribution:
        """Return the mixture, with the component summed out."""
        components = DiagonalNormalComponents(self.loc, softplus(self.raw_scale))
        return dist.MixtureSameFamily(self.classes(), components)
