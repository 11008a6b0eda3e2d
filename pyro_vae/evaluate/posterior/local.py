r"""Inference gaps: variational posteriors of single images, optimized from the amortized one.

    log p(x) - ELBO(q_phi)  =  [log p(x) - ELBO(q*)]  +  [ELBO(q*) - ELBO(q_phi)]
                                approximation gap         amortization gap

where q* is the best member of a family for one image. Both gaps are relative to the family, and q* is found by gradient
descent: longer optimization can only shift slack from the approximation to the amortization gap. Cremer, Li, Duvenaud,
"Inference Suboptimality in Variational Autoencoders", ICML 2018 (https://arxiv.org/abs/1801.03558).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.evaluate.annealing.hmc import Progress
from pyro_vae.evaluate.annealing.paths import AnnealingPath
from pyro_vae.evaluate.annealing.states import StartingParticles
from pyro_vae.evaluate.likelihood.weights import log_weights
from pyro_vae.evaluate.posterior.families import FAMILIES, Parameters
from pyro_vae.trace import Data, Program, derive_seed, read_only

Array = np.ndarray

_MOMENT_DRAWS = 1000
_LEARNING_RATE = 0.02


def per_image_elbos(
    model: Program,
    guide: Program,
    x: Data,
    families: Sequence[str] = ("diagonal", "flow"),
    *,
    num_steps: int = 500,
    num_particles: int = 10,
    num_samples: int = 1000,
    seed: int | None = None,
    progress: Progress = iter,
) -> dict[str, Array]:
    """Optimize a variational posterior for each image in each family, and estimate the ELBOs.

    Args:
        model: Model p(x, z) with continuous latents.
        guide: Guide q(z|x), where the optimization starts.
        x: Images (B, ...), a tuple of positional arguments, or a `Batch`.
        families: Names in `FAMILIES`: Gaussians with ``diagonal`` or ``full`` covariance, or a ``flow`` of affine
            couplings on a diagonal Gaussian.
        num_steps: Adam steps, with a cosine learning-rate decay to zero.
        num_particles: Particles per step, with path-derivative gradients.
        num_samples: Fresh samples for the final estimate of the ELBO.
        seed: Random seed. None uses fresh entropy.
        progress: Wrapper of the loop over steps, e.g. `tqdm`.

    Returns:
        {"amortized": ELBO of the guide (B,), family: ELBO of the optimized posterior (B,)}, in nats.

    Raises:
        ValueError: A family is unknown or needs more latents, or as `AnnealingPath`.
    """
    elbos = {
        "amortized": log_weights(model, guide, x, num_samples, seed=derive_seed(seed, "amortized"))
        .mean(0)
        .cpu()
        .numpy()
    }
    weights = local_log_weights(
        model,
        guide,
        x,
        families,
        num_steps=num_steps,
        num_particles=num_particles,
        num_samples=num_samples,
        seed=seed,
        progress=progress,
    )
    return elbos | {family: log_w.mean(0).cpu().numpy() for family, log_w in weights.items()}


def local_log_weights(
    model: Program,
    guide: Program,
    x: Data,
    families: Sequence[str],
    *,
    num_steps: int = 500,
    num_particles: int = 10,
    num_samples: int = 1000,
    seed: int | None = None,
    progress: Progress = iter,
) -> dict[str, Tensor]:
    """Return log importance weights of samples from posteriors that are optimized for each image.

    The optimization takes num_steps x num_particles density evaluations with gradient for each image.

    Args:
        model: Model p(x, z) with continuous latents.
        guide: Guide q(z|x), where the optimization starts.
        x: Images (B, ...), a tuple of positional arguments, or a `Batch`.
        families: Names in `FAMILIES`.
        num_steps: Adam steps, as in `per_image_elbos`.
        num_particles: Particles per step.
        num_samples: Number of fresh samples, K.
        seed: Random seed. None uses fresh entropy.
        progress: Wrapper of the loop over steps, e.g. `tqdm`.

    Returns:
        {family: log weights in nats, float64, shape (K, B)}.

    Raises:
        ValueError: A family is unknown or needs more latents, or as `AnnealingPath`.
    """
    if unknown := sorted(set(families) - FAMILIES.keys()):
        raise UserError(f"Unknown family {unknown[0]!r}; choose one of {', '.join(FAMILIES)}.")
    with read_only(model, guide, x=x, seed=seed, purpose="local", validate=False):
        path = AnnealingPath(model, guide, x, "guide")
        start = path.draw(_MOMENT_DRAWS)
        return {
            family: family_log_weights(path, start, family, num_steps, num_particles, num_samples, progress)
            for family in families
        }


def family_log_weights(
    path: AnnealingPath,
    start: StartingParticles,
    family: str,
    num_steps: int,
    num_particles: int,
    num_samples: int,
    progress: Progress,
) -> Tensor:
    """Optimize a posterior of one family for each image, and return log weights of its samples (K, B).

    Args:
        path: Path from the guide to the posterior of each image.
        start: Samples of the guide, whose moments are those of the first posterior.
        family: Name in `FAMILIES`.
        num_steps: As in `local_log_weights`, like the other arguments.
        num_particles: Particles per step.
        num_samples: Number of fresh samples, K.
        progress: Wrapper of the loop over steps.
    """
    loc, scale = start.u.mean(0), start.scale
    family_distribution, initial_parameters = FAMILIES[family]
    parameters = initial_parameters(loc)
    _fit(path, family_distribution, loc, scale, parameters, num_steps, num_particles, progress)
    with torch.no_grad():
        q = _unwhiten(family_distribution(parameters), loc, scale)
        chunks = [_log_weights(path, q, q, min(100, num_samples)) for _ in range(-(-num_samples // 100))]
    return torch.cat(chunks)[:num_samples]


def _fit(
    path: AnnealingPath,
    family_distribution: Callable[[Parameters], dist.Distribution],
    loc: Tensor,
    scale: Tensor,
    parameters: Parameters,
    num_steps: int,
    num_particles: int,
    progress: Progress,
) -> None:
    optim = torch.optim.Adam([p.requires_grad_() for p in parameters], lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optim, num_steps)
    for _ in progress(range(num_steps)):
        with torch.enable_grad():
            q = _unwhiten(family_distribution(parameters), loc, scale)
            # log q has detached parameters, which drops its score, whose expectation is zero (sticking the landing):
            # the variance of the gradient is zero where q equals the posterior.
            detached_q = _unwhiten(family_distribution([p.detach() for p in parameters]), loc, scale)
            loss = -_log_weights(path, q, detached_q, num_particles).mean(0).sum()
            gradients = torch.autograd.grad(loss, parameters)
        for p, gradient in zip(parameters, gradients, strict=True):
            p.grad = gradient
        optim.step()
        schedule.step()


def _log_weights(path: AnnealingPath, q: Any, scored_q: Any, num_particles: int) -> Tensor:
    u = q.rsample((num_particles,))
    return path.log_joint(u) - scored_q.log_prob(u).double()


def _unwhiten(standard: dist.Distribution, loc: Tensor, scale: Tensor) -> dist.Distribution:
    """Return q over u: the family's distribution, scaled and shifted to the amortized posterior."""
    return dist.TransformedDistribution(standard, dist.transforms.AffineTransform(loc, scale, event_dim=1))
