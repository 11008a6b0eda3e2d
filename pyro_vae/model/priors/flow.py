r"""Flow priors: an invertible network f maps z to Gaussian noise, p(z) = N(f(z); 0, I) |det df/dz|.

Evaluating the density at any z takes one pass. Neural spline flows: Durkan, Bekasov, Murray, Papamakarios, NeurIPS 2019
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
        flow: Flow without context; ``flow()`` returns a distribution.
    """

    def __init__(self, flow: zuko.flows.Flow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self) -> dist.Distribution:
        """Return the distribution of the flow."""
        return FlowDistribution(self.flow())


def nsf(latent_dim: int) -> Flow:
    """Return a neural spline flow with two autoregressive transforms, whose splines cover [-5, 5]."""
    return Flow(zuko.flows.NSF(latent_dim, transforms=2, hidden_features=(128, 128)))


def realnvp(latent_dim: int) -> Flow:
    """Return a RealNVP with six affine coupling transforms.

    Raises:
        ValueError: If `latent_dim` is 1, since a single unit cannot be split into halves.
    """
    if latent_dim < 2:
        raise UserError("A RealNVP prior couples two halves of z; it requires --latent-dim 2 or more.")
    return Flow(zuko.flows.RealNVP(latent_dim, transforms=6, hidden_features=(128, 128)))


def maf(latent_dim: int) -> Flow:
    """Return a masked autoregressive flow with three affine transforms."""
    return Flow(zuko.flows.MAF(latent_dim, transforms=3, hidden_features=(128, 128)))
