r"""No prior at all, p(z) = 1 over R^D: no distribution, and no term of any objective."""

from __future__ import annotations

import pyro.distributions as dist
from pyro.distributions import constraints
from torch import nn


class FlatPrior(nn.Module):
    """The improper uniform "density" of an autoencoder's code, which costs nothing and cannot be drawn from.

    Args:
        latent_dim: D.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim

    def forward(self) -> dist.Distribution:
        """Return p(z), batch shape (), event shape (D,)."""
        return dist.ImproperUniform(constraints.real_vector, (), (self.latent_dim,))
