r"""Improper flat prior, p(z) = 1 over R^D, which contributes nothing to an objective."""

from __future__ import annotations

import pyro.distributions as dist
from pyro.distributions import constraints
from torch import nn


class FlatPrior(nn.Module):
    """Improper uniform prior for autoencoders. Its log-density is zero, and it cannot be sampled.

    Args:
        latent_dim: D, the latent dimension.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim

    def forward(self) -> dist.Distribution:
        """Return an `ImproperUniform` over R^D."""
        return dist.ImproperUniform(constraints.real_vector, (), (self.latent_dim,))
