r"""Hamiltonian Monte Carlo (HMC) along an annealing path, vectorized over chains and images.

A transition at temperature b draws a momentum r ~ N(0, I) and follows the dynamics of the Hamiltonian

    H(u, r) = -log f_b(u) + |r|^2 / 2

in L leapfrog steps of size e, where C = C_b is a matrix of scales:

    r <- r + (e/2) C' grad log f_b(u),    u <- u + e C r,    r <- r + (e/2) C' grad log f_b(u).

These are the steps with mass (C C')^-1, in other coordinates. The end point (u', r') is accepted with the Metropolis
probability min(1, exp(H(u, r) - H(u', r'))); otherwise the particle stays at u. A leapfrog step preserves volume and is
reversed by negating the momentum. With fixed e and C, a transition k_b therefore satisfies detailed balance,

    f_b(u) k_b(u -> u') = f_b(u') k_b(u' -> u),

which leaves f_b invariant and makes k_b its own reversal, as backward chains require. Step sizes and scales that adapt
to the states of the chain void this: `pilot` sets them, and the temperatures, in a separate run.

Neal, "MCMC using Hamiltonian dynamics", Handbook of Markov Chain Monte Carlo 2011 (https://arxiv.org/abs/1206.1901).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.evaluate.annealing.gaussians import Scales, multiply, multiply_transposed
from pyro_vae.evaluate.annealing.paths import AnnealingPath
from pyro_vae.evaluate.annealing.resampling import resample
from pyro_vae.evaluate.annealing.states import PathState, StartingParticles

Progress = Callable[[Iterable[Any]], Iterable[Any]]


class WeightedParticles(NamedTuple):
    """Result of a run.

    Attributes:
        log_w: Log weights (K, B) in nats.
        acceptance: Mean acceptance per image (B,).
        u: Final particles (K, B, D).
        log_mean_w: Log of the mean weight at each temperature, in the order of the run, shape (T + 1, B).
        mean_log_ratio: Weighted mean of log p(x, u) - log f_0(u) there, shape (T + 1, B).
    """

    log_w: Tensor
    acceptance: Tensor
    u: Tensor
    log_mean_w: Tensor
    mean_log_ratio: Tensor


@dataclass(frozen=True)
class HMC:
    """HMC kernels along a path.

    Args:
        path: Path from f_0 to the posterior.
        scales: Scales C_b of the leapfrog steps.
        num_leapfrogs: Leapfrog steps per transition, L.
    """

    path: AnnealingPath
    scales: Scales
    num_leapfrogs: int

    def move(self, point: PathState, b: float, step_size: Tensor) -> tuple[PathState, Tensor]:
        """Apply one transition that leaves f_b invariant, with step sizes (B,), one for each image.

        Returns:
            The new state, and the acceptance per image (B,).
        """
        step = step_size.unsqueeze(-1)  # (B, 1), broadcast over (K, B, D)
        root = self.scales.at(b)
        momentum = torch.randn_like(point.u)
        before = point.log_density(b) - _kinetic(momentum)
        proposal = point
        momentum = momentum + 0.5 * step * multiply_transposed(root, point.gradient(b))
        # Two adjacent half steps of the momentum are merged into a full one.
        for leap in range(self.num_leapfrogs):
            proposal = self.path.evaluate(proposal.u + step * multiply(root, momentum))
            half = 0.5 if leap == self.num_leapfrogs - 1 else 1.0
            momentum = momentum + half * step * multiply_transposed(root, proposal.gradient(b))
        change = proposal.log_density(b) - _kinetic(momentum) - before
        # Divergent trajectories (NaN) are rejected.
        acceptance = change.clamp(max=0).exp().nan_to_num(0)
        taken = torch.rand_like(acceptance) < acceptance
        return proposal.where(taken, point), acceptance.mean(0).to(step_size)


@dataclass(frozen=True)
class AnnealedChains:
    """Chains through all temperatures of a path.

    Args:
        kernel: Kernels along the path.
        temperatures: Temperatures b_0, ..., b_T, shape (T + 1,).
        step_sizes: Step size for each temperature and image, shape (T + 1, B).
    """

    kernel: HMC
    temperatures: Tensor
    step_sizes: Tensor

    @property
    def path(self) -> AnnealingPath:
        """The path from f_0 to the posterior."""
        return self.kernel.path

    def forward(self, start: StartingParticles, progress: Progress, group_size: int = 1) -> WeightedParticles:
        """Run from K samples of f_0; the weighted particles approximate the posterior.

        Args:
            start: Samples of f_0.
            progress: Wrapper of the loop over temperatures.
            group_size: Number of chains that are resampled together, a divisor of K.
        """
        return self._run(start, range(1, len(self.temperatures)), 0, progress, group_size)

    def backward(self, u: Tensor, progress: Progress) -> WeightedParticles:
        """Run from exact samples u (K, B, D) of the posterior to f_0."""
        start = StartingParticles(u, torch.zeros(u.shape[:2], dtype=torch.float64, device=u.device))
        return self._run(start, range(len(self.temperatures) - 1, 0, -1), -1, progress, 1)

    def _run(
        self, start: StartingParticles, order: range, offset: int, progress: Progress, group_size: int
    ) -> WeightedParticles:
        """Accumulate log w along the path, with a transition after each increment.

        The increment of step t is evaluated at the current particles. The transition that follows it is at the
        temperature with index t + `offset`: b_t in forward, b_(t-1) in backward order. There is none at b_0 and b_T.
        Groups are resampled before it.
        """
        b = self.temperatures.tolist()
        point = self.path.evaluate(start.u)
        log_w = start.log_w.to(point.log_joint)
        accepted = torch.zeros_like(self.step_sizes[0])
        means = []
        for t in progress(order):
            log_ratio = point.log_joint - point.log_start
            means.append(_weighted_means(log_w, log_ratio))
            log_w = log_w + (b[t] - b[t - 1]) * log_ratio
            index = t + offset
            if 0 < index < len(b) - 1:
                if group_size > 1:
                    point, log_w = resample(point, log_w, group_size)
                point, acceptance = self.kernel.move(point, b[index], self.step_sizes[index])
                accepted += acceptance
        means.append(_weighted_means(log_w, point.log_joint - point.log_start))
        log_mean_w, mean_log_ratio = map(torch.stack, zip(*means, strict=True))
        return WeightedParticles(log_w, accepted / max(1, len(b) - 2), point.u, log_mean_w, mean_log_ratio)


def _weighted_means(log_w: Tensor, log_ratio: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log of the mean weight, and the weighted mean of the particles that have weight, each (B,)."""
    weights = log_w.softmax(0)
    return log_w.logsumexp(0) - math.log(len(log_w)), torch.where(weights > 0, weights * log_ratio, 0.0).sum(0)


def _kinetic(momentum: Tensor) -> Tensor:
    return 0.5 * momentum.double().square().sum(-1)
