r"""A prior with exponential tails, p(z) = prod_d Laplace(z_d; m_d, s_d)."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import nn
from torch.nn.functional import softplus


class Laplace(nn.Module):
    """Laplace with learned location and scale for each latent unit, initialized to mean 0 and variance 1.

    Args:
        latent_dim: D, the latent dimension.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(latent_dim))
        self.raw_scale = nn.Parameter(torch.full((latent_dim,), 0.5**0.5).expm1().log())

    def forward(self) -> dist.Distribution:
        """Return the product of the D Laplace distributions."""
        return dist.Laplace(self.loc, softplus(self.raw_scale)).to_event(1)
