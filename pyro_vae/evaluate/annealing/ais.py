r"""Annealed importance sampling: log p(x) by a path of distributions, with Hamiltonian Monte Carlo between them.

    log w = sum_t (b_t - b_(t-1)) (log p(x, z_(t-1)) - log f_0(z_(t-1))),    z_t by a kernel that keeps f_(b_t),

has E[w] = p(x), so that the log of the mean weight of K chains is a lower bound on log p(x) in expectation: Neal,
"Annealed importance sampling", Statistics and Computing 2001 (https://arxiv.org/abs/physics/9803008); for decoders
Wu, Burda, Salakhutdinov, Grosse, "On the quantitative analysis of decoder-based generative models", ICLR 2017
(https://arxiv.org/abs/1611.04273). Run backwards from an exact draw of the posterior, E[1/w] = 1/p(x) gives an upper
bound: Grosse, Ghahramani, Adams, "Sandwiching the marginal likelihood using bidirectional Monte Carlo", 2015
(https://arxiv.org/abs/1511.02543).

Step sizes are adapted for each image and temperature in a pilot run with noise of its own, then frozen: adapting
while counting would void both bounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pyro_vae.errors import UserError
from pyro_vae.evaluate.annealing.hmc import HMCKernels, Progress, WeightedParticles
from pyro_vae.evaluate.annealing.paths import SCHEDULES, STARTS, AnnealingPath
from pyro_vae.trace import Data, Program, check_support, read_only, simulate

Array = np.ndarray


@dataclass(frozen=True)
class AISConfig:
    """How to anneal.

    Args:
        num_chains: K, chains of each image.
        num_temperatures: T.
        num_leapfrogs: leapfrog steps of each transition.
        start: where the path begins, ``guide`` or ``prior``.
        schedule: ``sigmoid`` or ``linear``.
        compiled: whether densities are compiled, anew for every batch of images.

    Raises:
        ValueError: a number below 1, or a name that is not known.
    """

    num_chains: int = 16
    num_temperatures: int = 500
    num_leapfrogs: int = 5
    start: str = "guide"
    schedule: str = "sigmoid"
    compiled: bool = False

    def __post_init__(self) -> None:
        for name in ("num_chains", "num_temperatures", "num_leapfrogs"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        for name, choices in (("start", STARTS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in choices:
                raise UserError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}.")


@dataclass(frozen=True)
class AISResult:
    """K chains of N images: log weights (K, N), float64, in nats, and the mean acceptance of each image (N,)."""

    log_w: Array
    acceptance: Array

    @property
    def lower(self) -> Array:
        """The log of the mean weight (N,): forwards, a lower bound on log p(x) in expectation."""
        return np.logaddexp.reduce(self.log_w, 0) - math.log(len(self.log_w))

    @property
    def upper(self) -> Array:
        """Minus the log of the mean of 1/w (N,): backwards, an upper bound on log p(x) in expectation."""
        return math.log(len(self.log_w)) - np.logaddexp.reduce(-self.log_w, 0)

    @property
    def ess(self) -> Array:
        """Effective number of chains (N,), one over the sum of squared normalized weights."""
        return np.exp(2 * np.logaddexp.reduce(self.log_w, 0) - np.logaddexp.reduce(2 * self.log_w, 0))

    @staticmethod
    def concatenate(results: Iterable[AISResult]) -> AISResult:
        """Join the results of several batches of images."""
        results = list(results)
        log_w = np.concatenate([result.log_w for result in results], 1)
        return AISResult(log_w, np.concatenate([result.acceptance for result in results]))


@dataclass(frozen=True)
class BDMCResult:
    """Both bounds on log p(x) of N images that the model has simulated, in nats."""

    forward: AISResult
    backward: AISResult

    @property
    def gap(self) -> Array:
        """Upper minus lower bound (N,): in expectation, no less than how far either is off."""
        return self.backward.upper - self.forward.lower

    @staticmethod
    def concatenate(results: Iterable[BDMCResult]) -> BDMCResult:
        """Join the results of several batches of images."""
        results = list(results)
        sides = ([getattr(result, side) for result in results] for side in ("forward", "backward"))
        return BDMCResult(*map(AISResult.concatenate, sides))


def ais(
    model: Program,
    guide: Program,
    x: Data,
    config: AISConfig,
    *,
    seed: int | None = None,
    progress: Progress = iter,
) -> AISResult:
    """Estimate log p(x) of images by annealed importance sampling.

    Args:
        model: program of p(x, z), its latents continuous, in one data plate.
        guide: program of q(z|x).
        x: images (B, ...) in the support of the observed site, or the arguments of the programs; K x B particles are
            decoded at once.
        config: how to anneal.
        seed: of all noise; ``None`` takes fresh entropy.
        progress: wraps each iteration over temperatures, of the pilot and of the run: `tqdm` for one.

    Raises:
        ValueError: x is outside the support; a latent site is discrete, or there is none, or one outside the data
            plate.
    """
    check_support(model, guide, x)
    with read_only(model, guide, x=x, seed=seed, purpose="anneal", validate=False):
        kernels = adapt_kernels(model, guide, x, config, progress)
        return to_ais_result(kernels.forward(kernels.path.draw(config.num_chains), progress))


def bdmc(
    model: Program,
    guide: Program,
    template: Data,
    config: AISConfig,
    *,
    seed: int | None = None,
    progress: Progress = iter,
) -> BDMCResult:
    """Bound log p(x) from both sides, on images that the model simulates: the accuracy of `ais`.

    The latents behind a simulated image are an exact draw of its posterior, where the backward chains start. Both
    directions take the same frozen kernels.

    Args:
        model: as in `ais`.
        guide: as in `ais`.
        template: images (B, ...), of which only number and shape count, or the arguments of the programs, whose x is
            replaced.
        config: how to anneal.
        seed: of all noise, the images included.
        progress: as in `ais`.

    Raises:
        ValueError: as `ais` and `simulate`.
    """
    with read_only(model, guide, x=template, seed=seed, purpose="bidirectional", validate=False):
        x, values = simulate(model, template)
        kernels = adapt_kernels(model, guide, x, config, progress)
        exact = kernels.path.space.join(values).expand(config.num_chains, -1, -1)
        forward = to_ais_result(kernels.forward(kernels.path.draw(config.num_chains), progress))
        return BDMCResult(forward, to_ais_result(kernels.backward(exact, progress)))


def adapt_kernels(model: Program, guide: Program, x: Data, config: AISConfig, progress: Progress) -> HMCKernels:
    """Return kernels for images x, adapted in a pilot run and frozen."""
    path = AnnealingPath(model, guide, x, config.start, compiled=config.compiled)
    kernels = HMCKernels(path, SCHEDULES[config.schedule](config.num_temperatures), config.num_leapfrogs)
    kernels.adapt(config.num_chains, progress)
    return kernels


def to_ais_result(result: WeightedParticles) -> AISResult:
    """Return a run as arrays."""
    return AISResult(result.log_w.cpu().numpy(), result.acceptance.cpu().numpy())
