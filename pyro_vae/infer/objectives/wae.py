r"""The Wasserstein autoencoder with a kernel: matches the aggregate posterior, not each posterior, to the prior.

    E_q[log p(x|z)]  -  weight * MMD^2(q(z), p(z)),        q(z) = E_x q(z|x)

The cost of an image is its own distortion, in nats. The penalty is the squared maximum mean discrepancy of the two
distributions of z,

    MMD^2(q, p) = E k(a, a') + E k(b, b') - 2 E k(a, b),    a, a' ~ q,  b, b' ~ p,  all independent,

which is 0 if and only if they are equal, for the inverse multiquadratic kernel over R^D, summed over scales s,

    k(a, b) = sum_s C / (C + |a - b|^2),    C = 2 D s,    s = 0.1, 0.2, 0.5, 1, 2, 5, 10.

2 D is the mean squared distance between two samples of N(0, I); the scales are those of the authors' code. The
objective is not a bound on log p(x). Tolstikhin, Bousquet, Gelly, Schoelkopf, "Wasserstein Auto-Encoders", ICLR 2018
(https://arxiv.org/abs/1711.01558); the U-statistic of Gretton, Borgwardt, Rasch, Schoelkopf, Smola, "A Kernel
Two-Sample Test", JMLR 13 (2012).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.infer.objectives.coupled import refuse_masks
from pyro_vae.infer.objectives.objective import Objective, require_nonnegative
from pyro_vae.infer.objectives.particles import Particles

_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


def mmd(a: Tensor, b: Tensor) -> Tensor:
    """Estimate MMD^2 between the distributions of two samples, without bias: near 0 the estimate may be negative.

    Args:
        a: n independent draws from one distribution, shape (..., n, D).
        b: m independent draws from the other, shape (..., m, D).

    Returns:
        The U-statistic, shape (...), float64.

    Raises:
        ValueError: If a sample has fewer than two draws, or the dimensions D differ.

    Example:
        Samples of one distribution, and of two that are one unit apart:

        >>> import torch
        >>> a, b = torch.randn(2, 1000, 1)
        >>> print(f"{mmd(a, b).abs():.2f}, {mmd(a, b + 1):.2f}")
        0.00, 0.78
    """
    if min(a.shape[-2], b.shape[-2]) < 2 or a.shape[-1] != b.shape[-1]:
        shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise UserError(
            f"The samples have shapes {shapes}; give at least two draws of each, as (..., n, D) and (..., m, D)."
        )
    a, b = a.double(), b.double()
    return _within(_kernel(a, a)) + _within(_kernel(b, b)) - 2 * _kernel(a, b).mean((-2, -1))


class WAE(Objective):
    """E_q[log p(x|z)] - mmd_weight * MMD^2 between the codes of the batch and equally many prior samples, per particle.

    The penalty is the same for all images of a batch, and 0 for a batch of one. A prior is trained only if its samples
    are reparameterized, because the objective does not contain log p(z). Nothing prevents a Gaussian posterior from
    shrinking to a point. The reported ELBO is not affected, and may decrease while the objective increases.

    Args:
        num_particles: Number of particles K.
        mmd_weight: Weight of MMD^2, in nats.

    Raises:
        ValueError: At the first use, if the program has several latent sites, or the prior has no sampler.
    """

    reads_prior = True
    draws_from_prior = True

    def __init__(self, num_particles: int = 1, mmd_weight: float = 100.0) -> None:
        super().__init__(num_particles)
        self.mmd_weight = require_nonnegative("mmd_weight", mmd_weight)

    def per_image(self, particles: Particles) -> Tensor:
        """Return the log-likelihood minus the weighted discrepancy of the batch."""
        return particles.log_likelihood.mean(0) - self.mmd_weight * self.discrepancy(particles)

    def discrepancy(self, particles: Particles) -> Tensor:
        """Estimate MMD^2 between the codes and the prior, averaged over particles."""
        if len(particles.q.values) != 1:
            num_sites = len(particles.q.values)
            raise UserError(f"WAE supports exactly one latent site, and this program has {num_sites}.")
        ((name, z),) = particles.q.values.items()
        if z.shape[1] == 1:
            return torch.zeros((), dtype=torch.float64, device=z.device)
        refuse_masks(particles, name)
        prior = particles.p.sites[name]["fn"]
        try:
            draws = particles.p.per_image(name, _draws, extra=prior.event_dim)
        except NotImplementedError as error:
            raise UserError(
                f"The prior of {name!r} ({type(prior).__name__}) has no sampler, but the codes are compared with "
                "its samples: use a proper prior."
            ) from error
        codes, draws = (values.reshape(*z.shape[:2], -1) for values in (z, draws))
        return mmd(codes, draws).mean()


def _draws(site: Any) -> Tensor:
    fn = site["fn"]
    draws: Tensor = fn.rsample() if fn.has_rsample else fn.sample()
    return draws


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """Return the kernel between each of n and each of m points, shape (..., n, m)."""
    square = a.square().sum(-1).unsqueeze(-1) + b.square().sum(-1).unsqueeze(-2) - 2 * a @ b.mT
    sizes = [2 * a.shape[-1] * scale for scale in _SCALES]
    return torch.as_tensor(sum(size / (size + square) for size in sizes))


def _within(kernel: Tensor) -> Tensor:
    """Return the mean of a kernel matrix, shape (..., n, n), over pairs of distinct points."""
    num_points = kernel.shape[-1]
    off_diagonal = kernel.sum((-2, -1)) - kernel.diagonal(dim1=-2, dim2=-1).sum(-1)
    return off_diagonal / (num_points * (num_points - 1))
