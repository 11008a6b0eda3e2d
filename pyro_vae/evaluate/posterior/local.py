r"""Where the slack is: a posterior of its own for each image, optimized from the amortized one.

    log p(x) - ELBO(q_phi)  =  [log p(x) - ELBO(q*)]  +  [ELBO(q*) - ELBO(q_phi)]
                                approximation gap         amortization gap

with q* the best of a family for this image alone. Each gap is relative to that family, and the optimum is that of an
optimizer: a longer one can only move slack from the first gap to the second. Cremer, Li, Duvenaud, "Inference
Suboptimality in Variational Autoencoders", ICML 2018 (https://arxiv.org/abs/1801.03558).
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
    """Optimize a posterior for each image in each family, and estimate the ELBOs.

    Args:
        model: program of p(x, z), its latents continuous.
        guide: program of q(z|x), where the optimization starts.
        x: images (B, ...).
        families: of `FAMILIES`: ``diagonal`` and ``full`` Gaussians, ``flow`` (affine couplings on a diagonal one).
        num_steps: of Adam, the step size falling to zero.
        num_particles: of each step, whose gradient is that of the path alone.
        num_samples: fresh draws that estimate the ELBO in the end.
        seed: of all noise.
        progress: wraps the iteration over steps.

    Returns:
        {"amortized": of the guide (B,), family: of the best q found in it (B,)}, nats.

    Raises:
        ValueError: a family is not known, or needs more latents; as `AnnealingPath`.
    """
    if unknown := sorted(set(families) - FAMILIES.keys()):
        raise UserError(f"family {unknown[0]!r} is not known; choose of {', '.join(FAMILIES)}.")
    elbos = {
        "amortized": log_weights(model, guide, x, num_samples, seed=derive_seed(seed, "amortized"))
        .mean(0)
        .cpu()
        .numpy()
    }
    with read_only(model, guide, x=x, seed=seed, purpose="local", validate=False):
        path = AnnealingPath(model, guide, x, "guide")
        draws = path.draw(_MOMENT_DRAWS)
        loc, scale = draws.mean(0), draws.std(0)
        for family in families:
            make, start = FAMILIES[family]
            parameters = start(loc)
            _fit(path, make, loc, scale, parameters, num_steps, num_particles, progress)
            with torch.no_grad():
                q = _whole(make(parameters), loc, scale)
                parts = [_elbo(path, q, q, min(100, num_samples)) for _ in range(-(-num_samples // 100))]
            elbos[family] = torch.cat(parts).mean(0).cpu().numpy()
    return elbos


def _fit(
    path: AnnealingPath,
    make: Callable[[Parameters], dist.Distribution],
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
            q = _whole(make(parameters), loc, scale)
            # The score is left out (sticking the landing): no noise is left where q is the posterior.
            fixed = _whole(make([p.detach() for p in parameters]), loc, scale)
            loss = -_elbo(path, q, fixed, num_particles).mean(0).sum()
            gradients = torch.autograd.grad(loss, parameters)
        for p, gradient in zip(parameters, gradients, strict=True):
            p.grad = gradient
        optim.step()
        schedule.step()


def _elbo(path: AnnealingPath, q: Any, scored: Any, num_particles: int) -> Tensor:
    u = q.rsample((num_particles,))
    return path.log_joint(u) - scored.log_prob(u).double()


def _whole(standard: dist.Distribution, loc: Tensor, scale: Tensor) -> dist.Distribution:
    """Return q over u: that of the family, in units of the amortized posterior's mean and scale."""
    return dist.TransformedDistribution(standard, dist.transforms.AffineTransform(loc, scale, event_dim=1))
