r"""Gaussian approximations of the posterior of each image, fitted by natural gradients.

The Gaussian q = N(m, S) that maximizes the ELBO of one image satisfies

    E_q[grad log p(x, u)] = 0,    S^-1 = -E_q[Hessian of log p(x, u)],

and a round of natural-gradient ascent with rate r moves it toward that point:

    S^-1 <- (1 - r) S^-1 - r E_q[Hessian],    m <- m + r S E_q[grad].

Opper, Archambeau, "The variational Gaussian approximation revisited", Neural Computation 2009; Khan, Rue, "The Bayesian
learning rule", JMLR 2023 (https://arxiv.org/abs/2107.04562).

**Both expectations from gradients only.** Let S = L L^T and u = m + L e. Points come in pairs m + L e_i and m - L e_i,
where e_1, ..., e_D are orthogonal vectors of one length r, with a random rotation; r is distributed like the length of
a Gaussian vector. Each point is thus a draw from q, and with g = L^T grad log p(x, u)

    E_q[L^T grad]       is estimated by the mean of all g,
    E_q[L^T Hessian L]  by  sum_i (e_i / r) (g(e_i) - g(-e_i))^T / (2 r),  symmetrized.

The second is Stein's identity, E[Hessian] = E[e g^T], up to a factor r^2 / D, which weights the rotations of a round.
Since the directions are orthogonal, both are exact where log p is quadratic, so that their noise comes only from what
is not Gaussian in the posterior. No second derivatives are needed, and kinks of the decoder (ReLU), which a Hessian
does not see, count as the curvature that they cause.

With points so near to m that the differences are derivatives (`radius`), the same rounds are damped Newton steps, and
lead to the Laplace approximation: the mode, and the inverse of the Hessian there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Gradient = Callable[[Tensor], Tensor]

# Far from the optimum -E_q[Hessian] may be indefinite. In units of the present Gaussian, the precision of no direction
# falls below a quarter in one round, and the mean moves by at most 1 + sqrt(D), about the radius of the Gaussian.
_LEAST_PRECISION = 0.25


@dataclass(frozen=True)
class Gaussians:
    """Gaussians N(m, L L^T) over u for B images.

    Attributes:
        loc: Means m (B, D).
        root: Square roots L of the covariances (B, D, D), not necessarily triangular.
    """

    loc: Tensor
    root: Tensor

    @staticmethod
    def diagonal(loc: Tensor, scale: Tensor) -> Gaussians:
        """Return Gaussians with independent dimensions, given means and standard deviations (B, D)."""
        return Gaussians(loc, torch.diag_embed(scale))

    def transform(self, e: Tensor) -> Tensor:
        """Return m + L e (K, B, D) for e (K, B, D)."""
        return self.loc + torch.einsum("bij,kbj->kbi", self.root, e)

    def __getitem__(self, rows: Tensor) -> Gaussians:
        """Return those of some images."""
        return Gaussians(self.loc[rows], self.root[rows])

    def where(self, chosen: Tensor, other: Gaussians) -> Gaussians:
        """Return these Gaussians where `chosen` (B,) is true, and those of `other` elsewhere."""
        return Gaussians(
            torch.where(chosen[:, None], self.loc, other.loc), torch.where(chosen[:, None, None], self.root, other.root)
        )


def fit_round(
    gradient: Gradient, current: Gaussians, rate: float, num_rotations: int = 1, radius: float | None = None
) -> Gaussians:
    """Return the Gaussians after one round with 2 D R points for each image, for R rotations.

    Args:
        gradient: Function from points u (K, B, D) to the gradient of log p(x, u) with respect to u, same shape.
        current: Gaussians of B images.
        rate: Rate r of the natural gradient, between 0 and 1.
        num_rotations: Number of rotations R.
        radius: Length of all e_i. None draws them as the lengths of Gaussian vectors.

    Returns:
        The new Gaussians; those of an image with a non-finite gradient do not change.
    """
    dim = current.loc.shape[1]
    mean, hessian = _expectations(gradient, current, num_rotations, radius)
    finite = mean.isfinite().all(1) & hessian.isfinite().flatten(1).all(1)
    identity = torch.eye(dim, dtype=hessian.dtype, device=hessian.device)
    precision = torch.where(finite[:, None, None], (1 - rate) * identity - rate * hessian, identity)
    eigenvalues, vectors = torch.linalg.eigh(precision)
    eigenvalues = eigenvalues.clamp(min=_LEAST_PRECISION)
    shift = rate * torch.einsum("bij,bj,bkj,bk->bi", vectors, 1 / eigenvalues, vectors, mean.nan_to_num())
    shift = shift * ((1 + dim**0.5) / shift.norm(dim=1, keepdim=True)).clamp(max=1)
    moved = Gaussians(current.transform(shift[None])[0], current.root @ (vectors * eigenvalues.rsqrt()[:, None]))
    return moved.where(finite, current)


def _expectations(
    gradient: Gradient, current: Gaussians, num_rotations: int, radius: float | None
) -> tuple[Tensor, Tensor]:
    """Estimate E_q[L^T grad] (B, D) and E_q[L^T Hessian L] (B, D, D)."""
    dim = current.loc.shape[1]
    normal = torch.randn((num_rotations, *current.root.shape), dtype=current.loc.dtype, device=current.loc.device)
    directions = torch.linalg.qr(normal)[0]  # columns e_i / r, (R, B, D, D)
    lengths = torch.randn_like(normal[..., 0]).norm(dim=2)  # (R, B)
    if radius is not None:
        lengths = torch.full_like(lengths, radius)
    # Points in the first dimension: (R, D, B, D), then all of one sign before those of the other.
    e = (directions * lengths[..., None, None]).permute(0, 3, 1, 2).flatten(0, 1)
    gradients = gradient(current.transform(torch.cat([e, -e])))
    pairs = torch.einsum("bji,kbj->kbi", current.root, gradients).unflatten(0, (2, num_rotations, dim))
    mean = pairs.mean((0, 1, 2))
    hessians = torch.einsum("rbik,rkbj->rbij", directions, pairs[0] - pairs[1]) / (2 * lengths[..., None, None])
    weights = lengths.square() / lengths.square().sum(0)
    hessian = torch.einsum("rb,rbij->bij", weights, hessians)
    return mean, (hessian + hessian.mT) / 2
