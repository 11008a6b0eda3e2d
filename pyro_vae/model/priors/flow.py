r"""Flow priors: an invertible network f turns z into Gaussian noise, p(z) = N(f(z); 0, I) |det df/dz|.

Each scores a z from outside in one pass. Neural spline flows: Durkan, Bekasov, Murray, Papamakarios, NeurIPS 2019
(https://arxiv.org/abs/1906.04032). RealNVP: Dinh, Sohl-Dickstein, Bengio, ICLR 2017
(https://arxiv.org/abs/1605.08803). Masked autoregressive flow: Papamakarios, Pavlakou, Murray, NeurIPS 2017
(https://arxiv.org/abs/1705.07057).
"""

from __future__ import annotations

import pyro.distributions as dist
import zuko
from torch import nn

from pyro_vae.errors import UserError
from pyro_vae.model.distributions.reparameterized import FlowDistribution


class Flow(nn.Module):
    """A zuko flow over R^D as a Pyro distribution.

    Args:
        flow: without context; ``flow()`` is a distribution.
    """

    def __init__(self, flow: zuko.flows.Flow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self) -> dist.Distribution:
        """Return p(z), batch shape (), event shape (D,)."""
        return FlowDistribution(self.flow())


def nsf(latent_dim: int) -> Flow:
    """Return a neural spline flow of two autoregressive transforms; its splines lie in [-5, 5]."""
    return Flow(zuko.flows.NSF(latent_dim, transforms=2, hidden_features=(128, 128)))


def realnvp(latent_dim: int) -> Flow:
    """Return a RealNVP of six affine couplings.

    Raises:
        ValueError: a single latent unit, which cannot be split in two.
    """
    if latent_dim < 2:
        raise UserError("A RealNVP prior couples halves of z: it needs --latent-dim 2 or more.")
    return Flow(zuko.flows.RealNVP(latent_dim, transforms=6, hidden_features=(128, 128)))


def maf(latent_dim: int) -> Flow:
    """Return a masked autoregressive flow of three affine transforms."""
    return Flow(zuko.flows.MAF(latent_dim, transforms=3, hidden_features=(128, 128)))
