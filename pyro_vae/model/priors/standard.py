r"""The standard normal prior, p(z) = N(z; 0, I)."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn


class StandardNormal(nn.Module):
    """Standard normal over R^D, without parameters.

    Args:
        latent_dim: D, the latent dimension.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self) -> dist.Distribution:
        """Return N(0, I)."""
        return dist.Normal(self.loc, self.scale).to_event(1)
