r"""Pilot run of annealing, which sets everything that may depend on particles: scales, temperatures and step sizes.

First, particles move to the posterior of each image, and a Gaussian is fitted to their positions and gradients there.
It supplies the scales of the leapfrog steps and, with ``start="gaussian"``, f_0 itself. Then the particles return from
the posterior to f_0 along the path, with those scales. On the way, step sizes are adapted to a target acceptance, and
the variances are recorded from which temperatures are placed.

All of it is frozen afterwards and the particles are discarded. The chains therefore remain unbiased, however poor the
pilot run: it can only make their weights vary more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vae.evaluate.annealing.gaussians import Gaussian, Scales, fit_gaussian
from pyro_vae.evaluate.annealing.hmc import HMC, AnnealedChains, Progress
from pyro_vae.evaluate.annealing.paths import AnnealingPath
from pyro_vae.evaluate.annealing.schedules import FIXED_SCHEDULES, interpolate, place_temperatures, sigmoid
from pyro_vae.evaluate.annealing.states import PathState

_PARTICLES = 8
_MIN_STEPS = 20  # of each part; a quarter of the temperatures, if those are more
_LEAPFROGS = 3  # before the scales are known
_SCALE_DRAWS = 32  # samples of f_0 that estimate its standard deviations
_SETTLING_STEPS = 5  # transitions at b_T until the step size for the new scales has settled
_TARGET_ACCEPTANCE = 0.75
_RATE = 0.5  # change of a log step size, relative to acceptance minus target


def adapt_chains(
    path: AnnealingPath, schedule: str, num_temperatures: int, num_leapfrogs: int, progress: Progress
) -> AnnealedChains:
    """Return chains for a batch of images, whose kernels and temperatures are set in a pilot run.

    Args:
        path: Path from f_0 to the posterior; that of ``gaussian`` still lacks its f_0.
        schedule: Temperature schedule, one of `SCHEDULES`.
        num_temperatures: Number of steps, T.
        num_leapfrogs: Leapfrog steps per transition, L.
        progress: Wrapper of the loops over temperatures.
    """
    num_steps = max(_MIN_STEPS, num_temperatures // 4)
    scale = path.draw(_SCALE_DRAWS).scale
    point, posterior = _reach_posterior(path, scale, num_steps, progress)
    if path.start == "gaussian":
        path, scales = path.starting_from(posterior), Scales.constant(posterior.root)
    else:
        scales = Scales.between(scale, posterior)
    kernel = HMC(path, scales, num_leapfrogs)
    b = sigmoid(num_steps)
    variances, step_sizes = _return_to_start(kernel, point.u, b, progress)
    if schedule in FIXED_SCHEDULES:
        temperatures = FIXED_SCHEDULES[schedule](num_temperatures)
    else:
        temperatures = place_temperatures(b, variances.cpu(), num_temperatures)
    return AnnealedChains(kernel, temperatures, interpolate(temperatures, b, step_sizes))


def _reach_posterior(
    path: AnnealingPath, scale: Tensor, num_steps: int, progress: Progress
) -> tuple[PathState, Gaussian]:
    """Move particles to the posterior, and fit a Gaussian to those of the last `num_steps` transitions.

    From the prior, the temperature rises slowly. The samples of the guide are moved at b = 1 from the beginning.
    """
    approach = sigmoid(num_steps).tolist()[1:] if path.start == "prior" else [1.0] * num_steps
    kernel = HMC(path, Scales.constant(scale), _LEAPFROGS)
    point = path.evaluate(path.draw(_PARTICLES).u)
    step_size = torch.full_like(scale[:, 0], 0.3)
    positions, gradients = [], []
    for step in progress(range(2 * num_steps)):
        found = step >= num_steps
        point, acceptance = kernel.move(point, 1.0 if found else approach[step], step_size)
        step_size = _adapted(step_size, acceptance)
        if found:
            positions.append(point.u)
            gradients.append(point.joint_gradient)
    return point, fit_gaussian(torch.cat(positions), torch.cat(gradients))


def _return_to_start(kernel: HMC, u: Tensor, b: Tensor, progress: Progress) -> tuple[Tensor, Tensor]:
    """Move particles u (K, B, D) from the posterior to f_0.

    Returns:
        Variances of log p(x, u) - log f_0(u) over particles, and step sizes, at each of the temperatures b (P + 1,),
        both (P + 1, B).
    """
    point = kernel.path.evaluate(u)
    step_size = torch.full_like(u[0, :, 0], 0.7)
    for _ in range(_SETTLING_STEPS):
        point, acceptance = kernel.move(point, 1.0, step_size)
        step_size = _adapted(step_size, acceptance)
    variances, step_sizes = [], []
    for temperature in progress(b.flip(0).tolist()):
        point, acceptance = kernel.move(point, temperature, step_size)
        variances.append((point.log_joint - point.log_start).var(0))
        step_sizes.append(step_size)
        step_size = _adapted(step_size, acceptance)
    return torch.stack(variances[::-1]), torch.stack(step_sizes[::-1])


def _adapted(step_size: Tensor, acceptance: Tensor) -> Tensor:
    return step_size * (_RATE * (acceptance - _TARGET_ACCEPTANCE)).exp()
