r"""Gaussians that the pilot run fits to the posterior of each image: scales of leapfrog steps, and starts of chains.

From samples u of a density p and the gradients g = grad log p(u) there, first the Gaussian N(m, S) is found whose own
gradient is closest to g. It minimizes the Fisher divergence, weighted by S,

    E[(g - grad log N(u; m, S))' S (g - grad log N(u; m, S))],

the divergence of Cai et al., "Batch and match: black-box variational inference with a score-based divergence", ICML
2024 (https://arxiv.org/abs/2402.14758). The solution is S Cov(g) S = Cov(u), the geometric mean of Cov(u) and
Cov(g)^-1, and m = E[u] + S E[g]. If p is Gaussian, g is linear in u, and any D + 1 samples in general position
determine m and S exactly. This is why few samples suffice, where their covariance alone would be useless.

If p is not Gaussian, S is narrower than p; between two modes, far too narrow. By Stein's identity E[g u'] = -I,

    Cov(u) = S + Cov(u + S g) / 2,

where the second term is zero for a Gaussian p. Estimated from the same samples, this is the covariance of p, at the
noise of its difference from a Gaussian alone. It is the covariance of the fitted Gaussian.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_MAX_UNITS = 256  # latent units up to which covariances are full, and diagonal above
_RIDGE = 0.1  # added to both covariances relative to their diagonals, times D / S: the fewer samples, the more


def multiply(root: Tensor, v: Tensor) -> Tensor:
    """Return the product (K, B, D) of a matrix per image, (B, D, D) or the diagonal (B, D), and vectors (K, B, D)."""
    return root * v if root.dim() == 2 else torch.einsum("bij,kbj->kbi", root, v)


def multiply_transposed(root: Tensor, v: Tensor) -> Tensor:
    """Return the product of the transposed matrices and vectors, as `multiply`."""
    return root * v if root.dim() == 2 else torch.einsum("bij,kbi->kbj", root, v)


class Gaussian(NamedTuple):
    """Gaussians N(mean, root root') of B images.

    Attributes:
        mean: Means (B, D).
        root: Lower triangular square roots (B, D, D) of the covariances, or diagonal ones (B, D).
    """

    mean: Tensor
    root: Tensor

    def draw(self, num_samples: int) -> Tensor:
        """Draw K samples of each, (K, B, D)."""
        noise = torch.randn(num_samples, *self.mean.shape, dtype=self.mean.dtype, device=self.mean.device)
        return self.mean + multiply(self.root, noise)

    def evaluate(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-density (K, B) in nats, and its gradient (K, B, D), at u (K, B, D)."""
        if self.root.dim() == 2:
            diagonal, white = self.root, (u - self.mean) / self.root
            gradient = -white / self.root
        else:
            diagonal = self.root.diagonal(dim1=-2, dim2=-1)
            columns = (u - self.mean).permute(1, 2, 0)
            whitened = torch.linalg.solve_triangular(self.root, columns, upper=False)
            white = whitened.permute(2, 0, 1)
            gradient = -torch.linalg.solve_triangular(self.root.mT, whitened, upper=True).permute(2, 0, 1)
        log_norm = diagonal.log().sum(-1) + 0.5 * u.shape[-1] * math.log(2 * math.pi)
        return -0.5 * white.square().sum(-1) - log_norm, gradient


def fit_gaussian(u: Tensor, gradient: Tensor) -> Gaussian:
    """Fit a Gaussian to the posterior of each image.

    Covariances of more than 256 units are diagonal. An image with a non-finite gradient gets the moments of u.

    Args:
        u: Samples of the posterior (S, B, D), float64.
        gradient: Gradients of its log-density at u, (S, B, D).
    """
    mean, centered = u.mean(0), u - u.mean(0)
    variance = centered.square().mean(0)
    variance = variance.where(variance > 0, 1.0)
    finite = gradient.isfinite().all(-1, keepdim=True).all(0)
    gradient = torch.where(finite, gradient, -centered / variance)
    mean_gradient, gradient = gradient.mean(0), gradient - gradient.mean(0)
    gradient_variance = gradient.square().mean(0)
    scale = (variance / gradient_variance.where(gradient_variance > 0, 1.0)).pow(0.25)  # of the diagonal solution
    if u.shape[-1] > _MAX_UNITS:
        narrow = scale.square()
        residual = centered + narrow * gradient
        return Gaussian(mean + narrow * mean_gradient, (narrow + 0.5 * residual.square().mean(0)).sqrt())
    # In units of the scales, both covariances have the same diagonal.
    u, gradient = centered / scale, gradient * scale
    narrow = _geometric_mean(_covariance(u), _covariance(gradient))
    mean = mean + scale * multiply(narrow, (scale * mean_gradient).unsqueeze(0))[0]
    residual = u + multiply(narrow, gradient)
    covariance = narrow + 0.5 * torch.einsum("sbi,sbj->bij", residual, residual) / len(residual)
    return Gaussian(mean, scale.unsqueeze(-1) * torch.linalg.cholesky(covariance))


def _covariance(centered: Tensor) -> Tensor:
    """Return the covariances (B, D, D) of centered samples (S, B, D), with a ridge that makes them invertible."""
    covariance = torch.einsum("sbi,sbj->bij", centered, centered) / len(centered)
    size = covariance.shape[-1]
    ridge = _RIDGE * size / len(centered) * covariance.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=1e-12)
    return covariance + ridge[:, None, None] * torch.eye(size, dtype=ridge.dtype, device=ridge.device)


def _geometric_mean(a: Tensor, b: Tensor) -> Tensor:
    """Return the positive definite S with S b S = a, for positive definite a, b (B, D, D)."""
    root = torch.linalg.cholesky(b)
    values, vectors = torch.linalg.eigh(root.mT @ a @ root)
    middle = (vectors * values.clamp(min=1e-300).sqrt().unsqueeze(-2)) @ vectors.mT
    # S = root'^-1 (root' a root)^(1/2) root^-1
    left = torch.linalg.solve_triangular(root.mT, middle, upper=True)
    solution = torch.linalg.solve_triangular(root, left, upper=False, left=False)
    return 0.5 * (solution + solution.mT)


class Scales(NamedTuple):
    r"""Matrices C_b by which leapfrog steps are scaled at temperature b.

        C_b C_b' = ((1 - b) S_0^-1 + b S_1^-1)^-1

    is the covariance of f_b if both ends are Gaussians with covariances S_0 and S_1.

    Attributes:
        root: Square roots (B, D, D) of S_0, or diagonal ones (B, D).
        ratio: Eigenvalues (B, D) of root' S_1^-1 root, which is diagonal.
    """

    root: Tensor
    ratio: Tensor

    @classmethod
    def constant(cls, root: Tensor) -> Scales:
        """Return scales of a path whose ends have the same covariances root root'."""
        return cls(root, torch.ones(root.shape[:2], dtype=root.dtype, device=root.device))

    @classmethod
    def between(cls, scale: Tensor, posterior: Gaussian) -> Scales:
        """Return scales for standard deviations (B, D) of f_0 and a Gaussian posterior."""
        if posterior.root.dim() == 2:
            return cls(scale, (scale / posterior.root).square())
        relative = posterior.root / scale.unsqueeze(-1)
        values, vectors = torch.linalg.eigh(relative @ relative.mT)
        return cls(scale.unsqueeze(-1) * vectors, 1 / values.clamp(min=1e-12))

    def at(self, b: float) -> Tensor:
        """Return C_b, (B, D, D), or its diagonal (B, D)."""
        factor = (1 - b + b * self.ratio).rsqrt()
        return self.root * (factor if self.root.dim() == 2 else factor.unsqueeze(-2))
