r"""Defensive mixtures of a fitted proposal and the guide, and importance weights from them.

    q(u) = (1 - a) t(u) + a q(z|x),    a about 1/10,

where t is a Student-t distribution around the fitted Gaussian. Its tails are heavier than those of the posterior in
most directions. The guide bounds the weights where t does not reach, e.g. at a second mode that the fit has missed: a
weight is at most 1/a times that of the guide. Every tenth particle comes from the guide, from the first on, and the
others from t. With weights p(x, u) / q(u), the mean over both kinds of particles is unbiased for p(x): Hesterberg,
"Weighted average importance sampling and defensive mixture distributions", Technometrics 1995; for fixed numbers of
draws from each component, Veach, Guibas, "Optimally combining sampling techniques for Monte Carlo rendering", 1995.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Chi2

from pyro_vae.evaluate.annealing.paths import AnnealingPath
from pyro_vae.evaluate.likelihood.chunks import chunk_size, rows_at_once
from pyro_vae.evaluate.proposals.chunks import in_chunks
from pyro_vae.evaluate.proposals.gaussian import Gaussians

_DEGREES = 30.0  # of freedom of the Student-t distributions
_INFLATION = 1.1  # of their scale, relative to the Gaussian
_GUIDE_EVERY = 10  # one of this number of particles comes from the guide


def mixture_log_weights(path: AnnealingPath, gaussians: Gaussians, num_samples: int) -> Tensor:
    """Draw K particles per image from the defensive mixture and return their log weights in nats (K, B), float64.

    Args:
        path: Path from the guide to the posterior of each image.
        gaussians: Fitted Gaussians.
        num_samples: Number of particles, K.
    """
    num_guide = -(-num_samples // _GUIDE_EVERY)
    fraction = num_guide / num_samples
    size, in_memory = rows_at_once(path.batch), chunk_size(path.batch, path.num_states)
    drawn = [path.draw(size) for _ in range(0, num_guide, size)]
    guide_u, guide_log_w = (torch.cat(parts) for parts in zip(*drawn, strict=True))
    blocks = []
    # All blocks have one size, which does not depend on the free memory; the last one is cut.
    for block in torch.arange(-(-num_samples // size) * size, device=path.batch.device).split(size):
        u = _draw_student(gaussians, size)
        log_w = torch.zeros(u.shape[:2], dtype=torch.float64, device=u.device)
        from_guide = (block % _GUIDE_EVERY == 0) & (block < num_samples)
        places = block[from_guide] // _GUIDE_EVERY
        u[from_guide], log_w[from_guide] = guide_u[places], guide_log_w[places]  # minus infinity outside the support
        log_guide, log_joint = in_chunks(path.log_densities, u, in_memory)
        log_q = math.log(fraction) + log_guide
        if fraction < 1:
            log_q = torch.logaddexp(log_q, math.log1p(-fraction) + _log_student(gaussians, u))
        blocks.append((log_joint - log_q).where(log_w == 0, -torch.inf))
    return torch.cat(blocks)[:num_samples]


def _draw_student(gaussians: Gaussians, num_samples: int) -> Tensor:
    """Draw K particles (K, B, D) from the Student-t distributions."""
    shape = (num_samples, *gaussians.loc.shape)
    normal = torch.randn(shape, dtype=gaussians.loc.dtype, device=gaussians.loc.device)
    chi2 = Chi2(torch.full(shape[:2], _DEGREES, dtype=normal.dtype, device=normal.device)).sample()
    return gaussians.transform(normal * (_INFLATION * (_DEGREES / chi2).sqrt())[..., None])


def _log_student(gaussians: Gaussians, u: Tensor) -> Tensor:
    """Return the log-density (K, B) of the Student-t distributions at u (K, B, D)."""
    dim = u.shape[2]
    e = torch.linalg.solve(gaussians.root, (u - gaussians.loc).permute(1, 2, 0)).permute(2, 0, 1) / _INFLATION
    log_volume = torch.linalg.slogdet(gaussians.root)[1] + dim * math.log(_INFLATION)
    constant = math.lgamma((_DEGREES + dim) / 2) - math.lgamma(_DEGREES / 2) - dim / 2 * math.log(_DEGREES * math.pi)
    return constant - log_volume - (_DEGREES + dim) / 2 * torch.log1p(e.square().sum(2) / _DEGREES)
