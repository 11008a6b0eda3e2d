r"""Importance sampling with a proposal that is adapted to the posterior of each image.

The guide of a VAE is often a poor proposal: its covariance is diagonal and its mean amortized, so that a few of 1,000
weights dominate, k-hat is large, and log p(x) comes out too low. Here the proposal of each image is

1. a Gaussian, fitted to the posterior by rounds of natural gradients (`gaussian`) from the moments of the guide;
2. tested with a few draws: images whose k-hat is too large get further rounds, with more points;
3. mixed with the guide (`mixture`), and drawn from afresh.

The last draws do not depend on those that the proposal was adapted with. For a fixed proposal the mean of the weights
is unbiased for p(x), so it is unbiased here, and its log is a lower bound on log p(x) in expectation.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.errors import UserError, check_count
from pyro_vae.evaluate.annealing.paths import AnnealingPath
from pyro_vae.evaluate.annealing.states import StartingParticles
from pyro_vae.evaluate.likelihood.chunks import chunk_size
from pyro_vae.evaluate.likelihood.diagnostics import khat_threshold, psis
from pyro_vae.evaluate.posterior.local import family_log_weights
from pyro_vae.evaluate.proposals.chunks import in_chunks
from pyro_vae.evaluate.proposals.gaussian import Gaussians, fit_round
from pyro_vae.evaluate.proposals.mixture import mixture_log_weights
from pyro_vae.trace import Data, Program, read_only

PROPOSALS = ("guide", "local", "laplace", "adaptive")

_MOMENT_DRAWS = 200  # samples of the guide that give the first Gaussian
_TEST_DRAWS = 400
_MOST_DIMENSIONS = 300  # a round takes two gradients, and the Gaussian one row of a matrix, for each dimension
_FEWEST_POINTS = 64  # of a round
_GRADIENT_MEMORY = 4  # of a particle, relative to its density
# Rates of the rounds. The first ones go far, and the later ones average: with rates 1/2, 1/3, ... the precision is the
# mean over rounds.
_RATES = (0.5, 0.7, 0.7, 0.7, 1 / 2, 1 / 3, 1 / 4, 1 / 5)
_LATER_RATES = (0.5, 0.5, 1 / 2, 1 / 3, 1 / 4, 1 / 5)
_LATER_ROTATIONS = (2, 4)  # relative to the first phase
_LOCAL_STEPS, _LOCAL_PARTICLES = 500, 10  # of the optimization of a flow
# The Laplace approximation: damped Newton steps to the mode, with derivatives from differences over 0.01 s.d.
_NEWTON_STEPS, _NEWTON_RADIUS = 8, 0.01


class AdaptedWeights(NamedTuple):
    """Importance weights of K particles for each of B images.

    Attributes:
        log_w: Log weights in nats, float64, shape (K, B).
        evaluations: Number of density evaluations of each image (B,), those of the adaptation included.
    """

    log_w: Tensor
    evaluations: Tensor


def adapted_log_weights(
    model: Program,
    guide: Program,
    x: Data,
    num_samples: int,
    *,
    proposal: str = "adaptive",
    seed: int | None = None,
    compiled: bool = False,
) -> AdaptedWeights:
    """Return log importance weights of K draws from a proposal that is adapted to each image.

    Args:
        model: Model p(x, z). Its sampled latents are continuous and inside the data plate.
        guide: Guide q(z|x), whose density can be evaluated at given values.
        x: Images (B, ...) in the support of the observed site, a tuple of positional arguments, or a `Batch`.
        num_samples: Number of weights per image, K.
        proposal: ``"adaptive"``; ``"laplace"`` for the Laplace approximation, a Gaussian around the mode; or
            ``"local"`` for a flow (a Gaussian, if there is one latent unit), optimized by Adam as in `per_image_elbos`
            and not mixed with the guide.
        seed: Random seed. None uses fresh entropy.
        compiled: Evaluate densities with a graph, compiled for this batch.

    Raises:
        ValueError: `proposal` is unknown, K is below 1, the latents have more than 300 dimensions, or as
            `AnnealingPath`.
    """
    if proposal not in PROPOSALS[1:]:
        raise UserError(f"proposal is {proposal!r}; choose one of {', '.join(PROPOSALS[1:])}.")
    check_count("num_samples", num_samples, 1)
    with read_only(model, guide, x=x, seed=seed, purpose="adapt", validate=False):
        path = AnnealingPath(model, guide, x, "guide", compiled=compiled)
        start = path.draw(_MOMENT_DRAWS)
        if proposal == "local":
            return _local(path, start, num_samples)
        if start.u.shape[2] > _MOST_DIMENSIONS:
            raise UserError(
                f"The latents have {start.u.shape[2]} dimensions; proposals are adapted to at most {_MOST_DIMENSIONS}."
            )
        first = Gaussians.diagonal(start.u.mean(0), start.scale)
        adapt = _laplace if proposal == "laplace" else _adapt
        gaussians, evaluations = adapt(path, first)
        return AdaptedWeights(mixture_log_weights(path, gaussians, num_samples), evaluations + num_samples)


def _local(path: AnnealingPath, start: StartingParticles, num_samples: int) -> AdaptedWeights:
    """Return the weights of draws from a posterior that is optimized for each image."""
    family = "flow" if start.u.shape[2] > 1 else "full"
    log_w = family_log_weights(path, start, family, _LOCAL_STEPS, _LOCAL_PARTICLES, num_samples, iter)
    evaluations = torch.full_like(log_w[0], _LOCAL_STEPS * _LOCAL_PARTICLES + num_samples, dtype=torch.int64)
    return AdaptedWeights(log_w, evaluations)


def _laplace(path: AnnealingPath, gaussians: Gaussians) -> tuple[Gaussians, Tensor]:
    """Fit Laplace approximations; return them and the number of density evaluations of each image."""
    return _fit(path, gaussians, (1.0,) * _NEWTON_STEPS, radius=_NEWTON_RADIUS)


def _adapt(path: AnnealingPath, gaussians: Gaussians) -> tuple[Gaussians, Tensor]:
    """Fit Gaussians until the weights of each image are good; return them and the number of density evaluations."""
    rotations = -(-_FEWEST_POINTS // (2 * gaussians.loc.shape[1]))
    gaussians, evaluations = _fit(path, gaussians, _RATES, rotations)
    rows = torch.arange(len(path.batch), device=evaluations.device)
    for factor in _LATER_ROTATIONS:
        khat = psis(mixture_log_weights(path, gaussians[rows], _TEST_DRAWS).cpu().numpy()).khat
        evaluations[rows] += _TEST_DRAWS
        # An undefined k-hat (NaN) is that of equal weights, which no further round improves.
        bad = torch.as_tensor(khat > khat_threshold(_TEST_DRAWS), device=rows.device)
        rows = rows[bad]
        if not len(rows):
            break
        path = AnnealingPath(path.model, path.guide, path.batch[bad], "guide")
        fitted, more = _fit(path, gaussians[rows], _LATER_RATES, factor * rotations)
        gaussians.loc[rows], gaussians.root[rows] = fitted.loc, fitted.root
        evaluations[rows] += more
    return gaussians, evaluations


def _fit(
    path: AnnealingPath,
    gaussians: Gaussians,
    rates: tuple[float, ...],
    num_rotations: int = 1,
    radius: float | None = None,
) -> tuple[Gaussians, Tensor]:
    """Return the Gaussians after some rounds, and the number of density evaluations of each image (B,)."""
    num_images, dim = gaussians.loc.shape
    # A gradient keeps the activations of all layers, which takes more memory than a density.
    size = chunk_size(path.batch, _GRADIENT_MEMORY * path.num_states)

    def gradient(u: Tensor) -> Tensor:
        return in_chunks(lambda chunk: (path.evaluate(chunk).joint_gradient,), u, size)[0]

    for rate in rates:
        gaussians = fit_round(gradient, gaussians, rate, num_rotations, radius)
    points = 2 * dim * num_rotations * len(rates)
    return gaussians, torch.full((num_images,), points, device=gaussians.loc.device)
