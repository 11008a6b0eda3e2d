r"""Amortized posteriors q(z|x): modules whose ``forward(x)`` returns a distribution."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor, nn


class MeanField(nn.Module):
    r"""Diagonal Gaussian q(z|x) = N(z; loc(x), diag(scale(x)^2)) with scale = exp(net).

    Kingma, Welling, "Auto-Encoding Variational Bayes", ICLR 2014 (https://arxiv.org/abs/1312.6114).

    Args:
        net: encoder, (..., *pixels) -> (..., 2 D).
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> dist.Distribution:
        """Return q(z|x), batch shape (...), event shape (D,)."""
        loc, log_scale = self.net(x).chunk(2, dim=-1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)
