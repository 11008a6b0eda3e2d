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

Both identities require an f_0, temperatures and kernels that do not depend on the chains: `pilot` sets them in a
separate run, and they are then frozen.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pyro_vae.errors import UserError, check_count
from pyro_vae.evaluate.annealing.hmc import AnnealedChains, Progress, WeightedParticles
from pyro_vae.evaluate.annealing.paths import STARTS, AnnealingPath
from pyro_vae.evaluate.annealing.pilot import adapt_chains
from pyro_vae.evaluate.annealing.rate_distortion import RateDistortion, rate_distortion
from pyro_vae.evaluate.annealing.results import AISResult, BDMCResult
from pyro_vae.evaluate.annealing.schedules import SCHEDULES
from pyro_vae.evaluate.likelihood.bounds import iwae
from pyro_vae.trace import Data, Program, check_support, read_only, simulate


@dataclass(frozen=True)
class AISConfig:
    """Settings of annealed importance sampling.

    Args:
        num_chains: Number of chains per image, K.
        num_temperatures: Number of annealing steps from b_0 = 0 to b_T = 1, T.
        num_leapfrogs: Leapfrog steps per transition.
        start: Initial distribution f_0 of the path: ``guide``, ``prior``, or ``gaussian``, which is fitted to the
            posterior of each image in the pilot run.
        schedule: Temperature schedule: ``sigmoid``, ``linear``, or ``adaptive``, which the pilot run sets.
        compiled: Evaluate densities with a graph, compiled for every batch of images.
        group_size: Number of forward chains that are resampled together where their weights become uneven (sequential
            Monte Carlo). 1 resamples none. Standard errors need two or more groups.

    Raises:
        ValueError: A number is below 1, a name is unknown, or `group_size` does not divide `num_chains`.
    """

    num_chains: int = 16
    num_temperatures: int = 50
    num_leapfrogs: int = 2
    start: str = "gaussian"
    schedule: str = "adaptive"
    compiled: bool = False
    group_size: int = 1

    def __post_init__(self) -> None:
        for name in ("num_chains", "num_temperatures", "num_leapfrogs", "group_size"):
            check_count(name, getattr(self, name), 1)
        if self.num_chains % self.group_size:
            raise UserError(f"group_size is {self.group_size}; it must divide num_chains, {self.num_chains}.")
        for name, choices in (("start", STARTS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in choices:
                raise UserError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}.")


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
        chains = prepare_chains(model, guide, x, config, progress)
        return run_forward(chains, config, progress)[1]


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
    use the same kernels. Only forward chains are resampled.

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
        chains = prepare_chains(model, guide, x, config, progress)
        exact = chains.path.space.join(values).expand(config.num_chains, -1, -1)
        forward = run_forward(chains, config, progress)[1]
        backward = chains.backward(exact, progress)
        return BDMCResult(forward, _to_result(backward.log_w, backward, chains.path.evaluations))


def prepare_chains(model: Program, guide: Program, x: Data, config: AISConfig, progress: Progress) -> AnnealedChains:
    """Return chains for a batch, whose kernels and temperatures are set in a pilot run."""
    path = AnnealingPath(model, guide, x, config.start, compiled=config.compiled)
    return adapt_chains(path, config.schedule, config.num_temperatures, config.num_leapfrogs, progress)


def run_forward(chains: AnnealedChains, config: AISConfig, progress: Progress) -> tuple[WeightedParticles, AISResult]:
    """Run K chains from f_0; return their particles, and the result with arrays."""
    found = chains.forward(chains.path.draw(config.num_chains), progress, config.group_size)
    curve = None
    if chains.path.start == "prior":
        curve = rate_distortion(chains.temperatures, found.log_mean_w, found.mean_log_ratio)
    return found, _to_result(iwae(found.log_w, config.group_size), found, chains.path.evaluations, curve)


def _to_result(
    log_w: Tensor, found: WeightedParticles, evaluations: int, curve: RateDistortion | None = None
) -> AISResult:
    return AISResult(log_w.cpu().numpy(), found.acceptance.cpu().numpy(), evaluations, curve)
