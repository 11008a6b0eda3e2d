r"""Annealed importance sampling (AIS) of log p(x), with Hamiltonian Monte Carlo transitions.

For temperatures 0 = b_0 < ... < b_T = 1, a chain starts at z_0 ~ f_0 and accumulates

    log w = sum_t (b_t - b_(t-1)) (log p(x, z_(t-1)) - log f_0(z_(t-1))),    t = 1, ..., T,

where z_t is drawn by a kernel that leaves f_(b_t) = f_0^(1-b_t) p(x, .)^b_t invariant. Then E[w] = p(x), so that the
log of the mean weight of K chains is a lower bound on log p(x) in expectation: Neal, "Annealed importance sampling",
Statistics and Computing 2001 (https://arxiv.org/abs/physics/9803008); for decoders, Wu, Burda, Salakhutdinov, Grosse,
"On the quantitative analysis of decoder-based generative models", ICLR 2017 (https://arxiv.org/abs/1611.04273).

Run backward from an exact sample of the posterior, with the reversed kernels in reverse order, E[1/w] = 1/p(x), which
gives an upper bound (bidirectional Monte Carlo, BDMC): Grosse, Ghahramani, Adams, "Sandwiching the marginal likelihood
using bidirectional Monte Carlo", 2015 (https://arxiv.org/abs/1511.02543).

If the guide reaches beyond the support S of the prior, chains that start outside have w = 0, and the upper bound is too
high by -log q(S|x): backward chains never leave S, so that E[1/w] = q(S|x) / p(x).

Both identities require kernels that do not depend on the chains they move: the step sizes of each image and temperature
are adapted in a separate pilot run and then frozen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pyro_vae.errors import UserError, check_count
from pyro_vae.evaluate.annealing.hmc import HMCKernels, Progress, WeightedParticles
from pyro_vae.evaluate.annealing.paths import SCHEDULES, STARTS, AnnealingPath
from pyro_vae.trace import Data, Program, check_support, read_only, simulate

Array = np.ndarray


@dataclass(frozen=True)
class AISConfig:
    """Settings of annealed importance sampling.

    Args:
        num_chains: Number of chains per image, K.
        num_temperatures: Number of annealing steps from b_0 = 0 to b_T = 1, T.
        num_leapfrogs: Leapfrog steps per transition.
        start: Initial distribution f_0 of the path, ``guide`` or ``prior``.
        schedule: Temperature schedule, ``sigmoid`` or ``linear``.
        compiled: Evaluate densities with a graph, compiled for every batch of images.

    Raises:
        ValueError: A number is below 1, or a name is unknown.
    """

    num_chains: int = 16
    num_temperatures: int = 500
    num_leapfrogs: int = 5
    start: str = "guide"
    schedule: str = "sigmoid"
    compiled: bool = False

    def __post_init__(self) -> None:
        for name in ("num_chains", "num_temperatures", "num_leapfrogs"):
            check_count(name, getattr(self, name), 1)
        for name, choices in (("start", STARTS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in choices:
                raise UserError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}.")


@dataclass(frozen=True)
class AISResult:
    """Result of K chains for each of N images.

    Attributes:
        log_w: Log importance weights in nats, float64, shape (K, N).
        acceptance: Mean acceptance probability per image, shape (N,).
    """

    log_w: Array
    acceptance: Array

    @property
    def lower(self) -> Array:
        """Log of the mean of w (N,): with forward chains, a lower bound on log p(x) in expectation."""
        return np.logaddexp.reduce(self.log_w, 0) - math.log(len(self.log_w))

    @property
    def upper(self) -> Array:
        """Minus the log of the mean of 1/w (N,): with backward chains, an upper bound on log p(x) in expectation."""
        return math.log(len(self.log_w)) - np.logaddexp.reduce(-self.log_w, 0)

    @property
    def ess(self) -> Array:
        """Effective sample size (sum w)^2 / sum w^2 of the chains (N,), between 1 and K."""
        return np.exp(2 * np.logaddexp.reduce(self.log_w, 0) - np.logaddexp.reduce(2 * self.log_w, 0))

    @staticmethod
    def concatenate(results: Iterable[AISResult]) -> AISResult:
        """Concatenate the results of several batches of images."""
        results = list(results)
        log_w = np.concatenate([result.log_w for result in results], 1)
        return AISResult(log_w, np.concatenate([result.acceptance for result in results]))


@dataclass(frozen=True)
class BDMCResult:
    """Lower and upper bounds on log p(x) of N simulated images, in nats.

    Attributes:
        forward: Chains from f_0 to the posterior; `forward.lower` is the lower bound.
        backward: Chains from the posterior to f_0; `backward.upper` is the upper bound.
    """

    forward: AISResult
    backward: AISResult

    @property
    def gap(self) -> Array:
        """Upper minus lower bound (N,): in expectation, an upper bound on the error of either one."""
        return self.backward.upper - self.forward.lower

    @staticmethod
    def concatenate(results: Iterable[BDMCResult]) -> BDMCResult:
        """Concatenate the results of several batches of images."""
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
        model: Model p(x, z). Its sampled latents are continuous and inside the data plate.
        guide: Guide q(z|x).
        x: Images (B, ...) in the support of the observed site, a tuple of positional arguments, or a `Batch`. K * B
            particles are decoded at once.
        config: AIS settings.
        seed: Random seed. ``None`` uses fresh entropy.
        progress: Wrapper of the loops over temperatures, e.g. `tqdm`.

    Raises:
        ValueError: x is outside the support, or the program has no sampled latent site, or one that is discrete or
            outside the data plate.

    Example:
        From the prior, where p(x) = N(x; 0, 2 I) is 1 / (4 pi):

        >>> import pyro, pyro.distributions as dist, torch
        >>> from pyro_vae.evaluate import AISConfig
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        >>> config = AISConfig(num_chains=100, num_temperatures=20)
        >>> ais(model, guide, torch.zeros(1, 2), config, seed=0).lower.round(1)
        array([-2.5])
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
    """Bound log p(x) of simulated images from both sides, to measure the accuracy of `ais`.

    All K backward chains of a simulated image start from its latents, an exact sample of its posterior. Both directions
    use the same kernels.

    Args:
        model: Model p(x, z), as in `ais`.
        guide: Guide q(z|x).
        template: Images (B, ...), a tuple of positional arguments, or a `Batch`. x is replaced by simulated images.
        config: AIS settings.
        seed: Random seed of the simulation and the chains. ``None`` uses fresh entropy.
        progress: Wrapper as in `ais`.

    Raises:
        ValueError: As `ais` and `simulate`.
    """
    with read_only(model, guide, x=template, seed=seed, purpose="bidirectional", validate=False):
        x, values = simulate(model, template)
        kernels = adapt_kernels(model, guide, x, config, progress)
        exact = kernels.path.space.join(values).expand(config.num_chains, -1, -1)
        forward = to_ais_result(kernels.forward(kernels.path.draw(config.num_chains), progress))
        return BDMCResult(forward, to_ais_result(kernels.backward(exact, progress)))


def adapt_kernels(model: Program, guide: Program, x: Data, config: AISConfig, progress: Progress) -> HMCKernels:
    """Return HMC kernels for a batch, adapted in a pilot run."""
    path = AnnealingPath(model, guide, x, config.start, compiled=config.compiled)
    kernels = HMCKernels(path, SCHEDULES[config.schedule](config.num_temperatures), config.num_leapfrogs)
    kernels.adapt(config.num_chains, progress)
    return kernels


def to_ais_result(result: WeightedParticles) -> AISResult:
    """Convert the weights and acceptances of a run to NumPy arrays."""
    return AISResult(result.log_w.cpu().numpy(), result.acceptance.cpu().numpy())
