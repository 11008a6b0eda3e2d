r"""Components of Gaussian mixtures, whose log-densities are matrix products.

Expanding the square in the exponent,

    log N(z; m_c, diag(s_c^2)) = a_c + z . b_c - (z * z) . p_c / 2,    p_c = 1 / s_c^2,  b_c = m_c p_c,

takes two matrix products of shapes (B, D) and (D, C) for all C components. Broadcasting would materialize and reduce
tensors of shape (B, C, D).
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor


class DiagonalNormalComponents(dist.TorchDistribution):
    """C diagonal Gaussians over R^D, batch shape (..., C), for `MixtureSameFamily`.

    The products are computed in float64, because their terms cancel.

    Args:
        loc: Means, shape (C, D).
        scale: Standard deviations, shape (C, D).
        batch_shape: (..., C), set by `expand`. Defaults to (C,).
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 -- the attribute of torch's Distribution
    support = dist.constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, batch_shape: torch.Size | None = None) -> None:
        self.loc, self.scale = loc, scale
        super().__init__(batch_shape or loc.shape[:1], loc.shape[1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> DiagonalNormalComponents:
        """Return the same components with batch shape `batch_shape`."""
        return DiagonalNormalComponents(self.loc, self.scale, torch.Size(batch_shape))

    @property
    def mean(self) -> Tensor:
        """Means, shape (..., C, D)."""
        return self.loc.expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """Variances, shape (..., C, D)."""
        return self.scale.square().expand(self.batch_shape + self.event_shape)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw from every component, with pathwise gradients."""
        shape = torch.Size(sample_shape) + self.batch_shape + self.event_shape
        return self.loc + self.scale * torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-densities of vectors (..., 1, D) under every component, float64, shape (..., C)."""
        z = value.squeeze(-2).double()
        loc, scale = self.loc.double(), self.scale.double()
        precision = scale.square().reciprocal()
        constant = -(0.5 * loc.square() * precision + scale.log() + 0.5 * math.log(2 * math.pi)).sum(-1)
        return constant + z @ (loc * precision).mT - 0.5 * z.square() @ precision.mT
