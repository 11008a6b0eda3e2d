r"""A heavy-tailed prior, p(z) = prod_d StudentT(z_d; nu_d, m_d, s_d)."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import nn
from torch.nn.functional import softplus


class StudentT(nn.Module):
    """Student's t with learned degrees of freedom, location and scale for each latent unit.

    The degrees of freedom are initialized to 5, and are constrained to exceed 2, so that the variance exists.

    Args:
        latent_dim: D, the latent dimension.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.raw_df = nn.Parameter(torch.full((latent_dim,), 3.0).expm1().log())
        self.loc = nn.Parameter(torch.zeros(latent_dim))
        self.raw_scale = nn.Parameter(torch.ones(latent_dim).expm1().log())

    def forward(self) -> dist.Distribution:
        """Return the product of the D Student's t distributions."""
        return dist.StudentT(2 + softplus(self.raw_df), self.loc, softplus(self.raw_scale)).to_event(1)
