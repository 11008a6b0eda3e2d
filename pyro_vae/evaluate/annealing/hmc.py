r"""Hamiltonian Monte Carlo along an annealing path, all images and chains at once.

Neal, "MCMC using Hamiltonian dynamics", Handbook of Markov Chain Monte Carlo 2011 (https://arxiv.org/abs/1206.1901).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.evaluate.annealing.paths import AnnealingPath, PathState

Progress = Callable[[Iterable[Any]], Iterable[Any]]

_TARGET_ACCEPTANCE = 0.75
_FIRST_STEPS = 50  # of the pilot at the first temperature, until its step size has settled
_SCALE_DRAWS = 100


class WeightedParticles(NamedTuple):
    """What a run leaves: log w (K, B), the mean acceptance of each image (B,), and the last particles u (K, B, D)."""

    log_w: Tensor
    acceptance: Tensor
    u: Tensor


class HMCKernels:
    """A kernel for each temperature of a path, with a step size for each image.

    Step sizes are in units of the standard deviation of f_0, which the guide, for one, has for each latent unit.

    Args:
        path: from f_0 to the posterior.
        temperatures: b_0, ..., b_T.
        num_leapfrogs: of each transition.
    """

    def __init__(self, path: AnnealingPath, temperatures: Tensor, num_leapfrogs: int) -> None:
        self.path = path
        self.b = temperatures.tolist()
        self.num_leapfrogs = num_leapfrogs
        self.scale = path.draw(_SCALE_DRAWS).std(0)  # (B, D)
        self.step_sizes = torch.full((len(self.b), len(self.scale)), 0.3).to(self.scale)

    def adapt(self, num_chains: int, progress: Progress) -> None:
        """Set the step sizes (T, B) by a pilot run towards the target acceptance."""
        point = self.path.evaluate(self.path.draw(num_chains))
        step_size = self.step_sizes[0]
        for _ in range(_FIRST_STEPS):
            point, acceptance = self._move(point, self.b[1], step_size)
            step_size = step_size * (0.5 * (acceptance - _TARGET_ACCEPTANCE)).exp()
        for t in progress(range(1, len(self.b) - 1)):
            self.step_sizes[t] = step_size
            point, acceptance = self._move(point, self.b[t], step_size)
            step_size = step_size * (0.2 * (acceptance - _TARGET_ACCEPTANCE)).exp()

    def forward(self, u: Tensor, progress: Progress) -> WeightedParticles:
        """Run from u (K, B, D), drawn from f_0, to particles that with their weights stand for the posterior."""
        return self._run(u, range(1, len(self.b)), 0, progress)

    def backward(self, u: Tensor, progress: Progress) -> WeightedParticles:
        """Run from u (K, B, D), drawn from the posterior, to f_0."""
        return self._run(u, range(len(self.b) - 1, 0, -1), -1, progress)

    def _run(self, u: Tensor, order: range, behind: int, progress: Progress) -> WeightedParticles:
        """Weigh from b_(t-1) to b_t and move, at b_t forwards and at b_(t-1) backwards; neither end is moved at."""
        point = self.path.evaluate(u)
        log_w = torch.zeros_like(point.log_joint)
        accepted = torch.zeros(len(self.scale), dtype=self.scale.dtype, device=u.device)
        for t in progress(order):
            log_w += (self.b[t] - self.b[t - 1]) * (point.log_joint - point.log_start)
            at = t + behind
            if 0 < at < len(self.b) - 1:
                point, acceptance = self._move(point, self.b[at], self.step_sizes[at])
                accepted += acceptance
        return WeightedParticles(log_w, accepted / max(1, len(self.b) - 2), point.u)

    def _move(self, point: PathState, b: float, step_size: Tensor) -> tuple[PathState, Tensor]:
        """Take one transition that keeps f_b; return the particles and the acceptance of each image (B,)."""
        step = step_size.unsqueeze(-1)  # (B, 1) beside (K, B, D)
        momentum = torch.randn_like(point.u)
        before = point.log_density(b) - _kinetic(momentum)
        proposal = point
        momentum = momentum + 0.5 * step * self.scale * point.gradient(b)
        for leap in range(self.num_leapfrogs):
            proposal = self.path.evaluate(proposal.u + step * self.scale * momentum)
            half = 0.5 if leap == self.num_leapfrogs - 1 else 1.0
            momentum = momentum + half * step * self.scale * proposal.gradient(b)
        change = proposal.log_density(b) - _kinetic(momentum) - before
        # A trajectory that has left for infinity has no density there, and is not taken.
        acceptance = change.clamp(max=0).exp().nan_to_num(0)
        taken = torch.rand_like(acceptance) < acceptance
        return proposal.where(taken, point), acceptance.mean(0).to(self.scale)


def _kinetic(momentum: Tensor) -> Tensor:
    return 0.5 * momentum.double().square().sum(-1)
