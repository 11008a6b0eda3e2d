r"""A learned diagonal Gaussian prior, p(z) = N(z; m, diag(s^2))."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import nn
from torch.nn.functional import softplus


class DiagonalGaussian(nn.Module):
    """Normal with learned mean and scale for each latent unit, initialized to N(0, I).

    Args:
        latent_dim: D, the latent dimension.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(latent_dim))
        self.raw_scale = nn.Parameter(torch.ones(latent_dim).expm1().log())

    def forward(self) -> dist.Distribution:
        """Return N(m, diag(s^2))."""
        return dist.Normal(self.loc, softplus(self.raw_scale)).to_event(1)
