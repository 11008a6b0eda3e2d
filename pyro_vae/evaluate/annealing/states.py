r"""Particles of an annealing path: where chains start, and the densities and gradients at their positions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class StartingParticles(NamedTuple):
    """Samples of f_0.

    Attributes:
        u: Particles (K, B, D) in the support. A sample outside it is replaced by another sample of the same image that
            is inside, or by u = 0 if there is none, and keeps the weight 0.
        log_w: Initial log weights (K, B), 0 or, for samples outside the support, minus infinity.
    """

    u: Tensor
    log_w: Tensor

    @property
    def scale(self) -> Tensor:
        """Standard deviations (B, D) of u; 1 where a sample has no variance, as of particles that are all replaced."""
        scale = self.u.std(0)
        return scale.where(scale > 0, 1.0)


class PathState(NamedTuple):
    """Particles u (K, B, D), log f_0 and log p(x, u) (K, B) in nats, and the gradients of both (K, B, D)."""

    u: Tensor
    log_start: Tensor
    log_joint: Tensor
    start_gradient: Tensor
    joint_gradient: Tensor

    def log_density(self, b: float) -> Tensor:
        """Return log f_b (K, B)."""
        return (1 - b) * self.log_start + b * self.log_joint

    def gradient(self, b: float) -> Tensor:
        """Return the gradient of log f_b (K, B, D)."""
        return (1 - b) * self.start_gradient + b * self.joint_gradient

    def where(self, chosen: Tensor, other: PathState) -> PathState:
        """Return these particles where `chosen` (K, B) is true, and those of `other` elsewhere."""
        pairs = zip(self, other, strict=True)
        return PathState(*(torch.where(chosen.unsqueeze(-1) if p.dim() == 3 else chosen, p, q) for p, q in pairs))
