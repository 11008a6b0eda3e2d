r"""Hamiltonian Monte Carlo (HMC) along an annealing path, vectorized over chains and images.

A transition at temperature b draws a momentum r ~ N(0, I) and follows the dynamics of the Hamiltonian

    H(u, r) = -log f_b(u) + |r|^2 / 2

in L leapfrog steps of size e, where s is the standard deviation of f_0 in each dimension:

    r <- r + (e/2) s * grad log f_b(u),    u <- u + e s * r,    r <- r + (e/2) s * grad log f_b(u).

The end point (u', r') is accepted with the Metropolis probability min(1, exp(H(u, r) - H(u', r'))); otherwise the
particle stays at u. A leapfrog step preserves volume and is reversed by negating the momentum. With fixed e and s, a
transition k_b therefore satisfies detailed balance,

    f_b(u) k_b(u -> u') = f_b(u') k_b(u' -> u),

which leaves f_b invariant and makes k_b its own reversal, as backward chains require. Step sizes that adapt to the
states of the chain void this: `adapt` sets them in a pilot run, and `forward` and `backward` never change them.

Neal, "MCMC using Hamiltonian dynamics", Handbook of Markov Chain Monte Carlo 2011 (https://arxiv.org/abs/1206.1901).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.evaluate.annealing.paths import AnnealingPath
from pyro_vae.evaluate.annealing.states import PathState, StartingParticles

Progress = Callable[[Iterable[Any]], Iterable[Any]]

_TARGET_ACCEPTANCE = 0.75
_FIRST_STEPS = 50  # pilot transitions at b_1 until its step size has settled
_SCALE_DRAWS = 100  # samples of f_0 that estimate its standard deviations


class WeightedParticles(NamedTuple):
    """Result of a run: log w (K, B) in nats, mean acceptance per image (B,), and final particles u (K, B, D)."""

    log_w: Tensor
    acceptance: Tensor
    u: Tensor


class HMCKernels:
    """HMC kernels for all temperatures of a path, with one step size per temperature and image.

    Step sizes are relative to the standard deviation of f_0, which is estimated for each image and dimension. The guide
    as f_0 thus supplies the scale of each latent unit.

    Args:
        path: Path from f_0 to the posterior.
        temperatures: Temperatures b_0, ..., b_T, shape (T + 1,).
        num_leapfrogs: Leapfrog steps per transition, L.
    """

    def __init__(self, path: AnnealingPath, temperatures: Tensor, num_leapfrogs: int) -> None:
        self.path = path
        self.b = temperatures.tolist()
        self.num_leapfrogs = num_leapfrogs
        self.scale = path.draw(_SCALE_DRAWS).scale  # (B, D)
        self.step_sizes = torch.full((len(self.b), len(self.scale)), 0.3).to(self.scale)

    def adapt(self, num_chains: int, progress: Progress) -> None:
        """Adapt the step sizes (T + 1, B) to the target acceptance in a pilot run, whose particles are discarded.

        After each transition, the log step size of an image changes in proportion to its acceptance minus the target.
        Each temperature starts from the step size of the one before it.
        """
        point = self.path.evaluate(self.path.draw(num_chains).u)
        step_size = self.step_sizes[0]
        for _ in range(_FIRST_STEPS):
            point, acceptance = self._move(point, self.b[1], step_size)
            step_size = step_size * (0.5 * (acceptance - _TARGET_ACCEPTANCE)).exp()
        for t in progress(range(1, len(self.b) - 1)):
            self.step_sizes[t] = step_size
            point, acceptance = self._move(point, self.b[t], step_size)
            step_size = step_size * (0.2 * (acceptance - _TARGET_ACCEPTANCE)).exp()

    def forward(self, start: StartingParticles, progress: Progress) -> WeightedParticles:
        """Run from K samples of f_0; the weighted particles approximate the posterior."""
        result = self._run(start.u, range(1, len(self.b)), 0, progress)
        return result._replace(log_w=result.log_w + start.log_w)

    def backward(self, u: Tensor, progress: Progress) -> WeightedParticles:
        """Run from exact samples u (K, B, D) of the posterior to f_0."""
        return self._run(u, range(len(self.b) - 1, 0, -1), -1, progress)

    def _run(self, u: Tensor, order: range, offset: int, progress: Progress) -> WeightedParticles:
        """Accumulate log w along the path, with a transition after each increment.

        The increment of step t is evaluated at the current particles. The transition that follows it is at the
        temperature with index t + `offset`: b_t in forward, b_(t-1) in backward order. There is none at b_0 and b_T.
        """
        point = self.path.evaluate(u)
        log_w = torch.zeros_like(point.log_joint)
        accepted = torch.zeros(len(self.scale), dtype=self.scale.dtype, device=u.device)
        for t in progress(order):
            log_w += (self.b[t] - self.b[t - 1]) * (point.log_joint - point.log_start)
            index = t + offset
            if 0 < index < len(self.b) - 1:
                point, acceptance = self._move(point, self.b[index], self.step_sizes[index])
                accepted += acceptance
        return WeightedParticles(log_w, accepted / max(1, len(self.b) - 2), point.u)

    def _move(self, point: PathState, b: float, step_size: Tensor) -> tuple[PathState, Tensor]:
        """Apply one transition that leaves f_b invariant; return the new state and the acceptance per image (B,)."""
        step = step_size.unsqueeze(-1)  # (B, 1), broadcast over (K, B, D)
        momentum = torch.randn_like(point.u)
        before = point.log_density(b) - _kinetic(momentum)
        proposal = point
        momentum = momentum + 0.5 * step * self.scale * point.gradient(b)
        # Two adjacent half steps of the momentum are merged into a full one.
        for leap in range(self.num_leapfrogs):
            proposal = self.path.evaluate(proposal.u + step * self.scale * momentum)
            half = 0.5 if leap == self.num_leapfrogs - 1 else 1.0
            momentum = momentum + half * step * self.scale * proposal.gradient(b)
        change = proposal.log_density(b) - _kinetic(momentum) - before
        # Divergent trajectories (NaN) are rejected.
        acceptance = change.clamp(max=0).exp().nan_to_num(0)
        taken = torch.rand_like(acceptance) < acceptance
        return proposal.where(taken, point), acceptance.mean(0).to(self.scale)


def _kinetic(momentum: Tensor) -> Tensor:
    return 0.5 * momentum.double().square().sum(-1)
