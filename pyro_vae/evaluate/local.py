r"""Where the slack is: a posterior of its own for each image, optimised from the amortized one.

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
from torch.distributions import constraints

from pyro_vae.evaluate.annealing import quietly
from pyro_vae.evaluate.hmc import Progress
from pyro_vae.evaluate.paths import Path
from pyro_vae.evaluate.weights import log_weights
from pyro_vae.trace import Program

Array = np.ndarray
Parameters = list[Tensor]

_MOMENT_DRAWS = 1000
_LEARNING_RATE = 0.02
_HIDDEN, _COUPLINGS = 32, 4


def local_elbos(
    model: Program,
    guide: Program,
    x: Tensor,
    families: Sequence[str] = ("diagonal", "flow"),
    *,
    num_steps: int = 500,
    num_particles: int = 10,
    num_samples: int = 1000,
    seed: int | None = None,
    progress: Progress = iter,
) -> dict[str, Array]:
    """Optimise a posterior for each image in each family, and estimate the ELBOs.

    Args:
        model: program of p(x, z), its latents continuous.
        guide: program of q(z|x), where the optimisation starts.
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
        ValueError: a family is not known, or needs more latents; as `Path`.
    """
    if unknown := sorted(set(families) - FAMILIES.keys()):
        raise ValueError(f"family {unknown[0]!r} is not known; choose of {', '.join(FAMILIES)}.")
    found = {"amortized": log_weights(model, guide, x, num_samples, seed=seed).mean(0).cpu().numpy()}
    with quietly(model, guide, x, seed):
        path = Path(model, guide, x, "guide")
        draws = path.draw(_MOMENT_DRAWS)
        loc, scale = draws.mean(0), draws.std(0)
        for family in families:
            make, start = FAMILIES[family]
            parameters = start(loc)
            _fit(path, make, loc, scale, parameters, num_steps, num_particles, progress)
            with torch.no_grad():
                q = _whole(make(parameters), loc, scale)
                parts = [_elbo(path, q, q, min(100, num_samples)) for _ in range(-(-num_samples // 100))]
            found[family] = torch.cat(parts).mean(0).cpu().numpy()
    return found


def _fit(
    path: Path,
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


def _elbo(path: Path, q: Any, scored: Any, num_particles: int) -> Tensor:
    u = q.rsample((num_particles,))
    return path.log_joint(u) - scored.log_prob(u).double()


def _whole(standard: dist.Distribution, loc: Tensor, scale: Tensor) -> dist.Distribution:
    """Return q over u: that of the family, in units of the amortized posterior's mean and scale."""
    return dist.TransformedDistribution(standard, dist.transforms.AffineTransform(loc, scale, event_dim=1))


# Families, over u in those units: how q is made of its parameters, and the parameters at which it is N(0, I).


def _diagonal(parameters: Parameters) -> dist.Distribution:
    loc, log_scale = parameters[:2]
    return dist.Normal(loc, log_scale.exp()).to_event(1)


def _full(parameters: Parameters) -> dist.Distribution:
    loc, log_scale, below = parameters
    return dist.MultivariateNormal(loc, scale_tril=below.tril(-1) + log_scale.exp().diag_embed())


def _flow(parameters: Parameters) -> dist.Distribution:
    couplings = [
        _Coupling(parameters[start : start + 4], flip=start % 8 == 2) for start in range(2, len(parameters), 4)
    ]
    return dist.TransformedDistribution(_diagonal(parameters), couplings)


def _diagonal_start(like: Tensor) -> Parameters:
    return [torch.zeros_like(like), torch.zeros_like(like)]


def _full_start(like: Tensor) -> Parameters:
    return [*_diagonal_start(like), like.new_zeros(*like.shape, like.shape[-1])]


def _flow_start(like: Tensor) -> Parameters:
    num_images, dim = like.shape
    if dim < 2:
        raise ValueError("A flow of couplings splits the latents in two: it needs two of them or more.")
    parameters = _diagonal_start(like)
    for number in range(_COUPLINGS):
        given, moved = (dim - dim // 2, dim // 2) if number % 2 == 0 else (dim // 2, dim - dim // 2)
        first = torch.randn(num_images, given, _HIDDEN, dtype=like.dtype, device=like.device) / given**0.5
        parameters += [first, like.new_zeros(num_images, 1, _HIDDEN)]
        parameters += [like.new_zeros(num_images, _HIDDEN, 2 * moved), like.new_zeros(num_images, 1, 2 * moved)]
    return parameters


FAMILIES: dict[str, tuple[Callable[[Parameters], dist.Distribution], Callable[[Tensor], Parameters]]] = {
    "diagonal": (_diagonal, _diagonal_start),
    "full": (_full, _full_start),
    "flow": (_flow, _flow_start),
}


class _Coupling(dist.transforms.Transform):
    """An affine coupling with a network of each image: one part of u moves by what the network makes of the other."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, weights: Parameters, flip: bool) -> None:
        super().__init__(cache_size=0)
        self.weights = weights
        self.flip = flip

    def _parts(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Split u (K, B, D) into what is given and what moves; return both, the shift and the log scale."""
        given_size = self.weights[0].shape[-2]
        sizes = [u.shape[-1] - given_size, given_size] if self.flip else [given_size, u.shape[-1] - given_size]
        parts = u.split(sizes, -1)
        given, moved = reversed(parts) if self.flip else parts
        first, first_bias, second, second_bias = self.weights
        hidden = torch.tanh(torch.einsum("kbi,bih->kbh", given, first) + first_bias.squeeze(1))
        shift, log_scale = (torch.einsum("kbh,bho->kbo", hidden, second) + second_bias.squeeze(1)).chunk(2, -1)
        return given, moved, shift, log_scale.tanh()

    def _joined(self, given: Tensor, moved: Tensor) -> Tensor:
        return torch.cat([moved, given] if self.flip else [given, moved], -1)

    def _call(self, u: Tensor) -> Tensor:
        given, moved, shift, log_scale = self._parts(u)
        return self._joined(given, moved * log_scale.exp() + shift)

    def _inverse(self, v: Tensor) -> Tensor:
        given, moved, shift, log_scale = self._parts(v)
        return self._joined(given, (moved - shift) * (-log_scale).exp())

    def log_abs_det_jacobian(self, u: Tensor, v: Tensor) -> Tensor:
        """Return log |det dv/du| (K, B)."""
        return self._parts(u)[3].sum(-1)
