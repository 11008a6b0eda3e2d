"""Gaussians fitted by natural gradients: exact where log p is quadratic, and at the optimum of the ELBO elsewhere."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pyro_vae.evaluate.proposals.gaussian import Gaussians, fit_round

DOUBLE = torch.float64


def covariances(gaussians: Gaussians) -> Tensor:
    return gaussians.root @ gaussians.root.mT


def standard(num_images: int, dim: int) -> Gaussians:
    return Gaussians.diagonal(torch.zeros(num_images, dim, dtype=DOUBLE), torch.ones(num_images, dim, dtype=DOUBLE))


@pytest.mark.parametrize("radius", [None, 0.01])
def test_one_round_finds_any_gaussian(radius: float | None) -> None:
    """log p = -(u - mean)' A (u - mean) / 2, a different one for each image, with the eigenvalues of A above 1/4."""
    torch.manual_seed(0)
    square = torch.randn(3, 5, 5, dtype=DOUBLE)
    precision = square @ square.mT + 0.3 * torch.eye(5, dtype=DOUBLE)
    mean = 0.2 * torch.randn(3, 5, dtype=DOUBLE)

    def gradient(u: Tensor) -> Tensor:
        return -torch.einsum("bij,kbj->kbi", precision, u - mean)

    found = fit_round(gradient, standard(3, 5), 1.0, radius=radius)
    torch.testing.assert_close(found.loc, mean, rtol=0, atol=1e-9)
    torch.testing.assert_close(covariances(found), precision.inverse(), rtol=1e-7, atol=1e-9)


def test_mean_that_is_far_away_is_reached_in_bounded_steps() -> None:
    """The target N(100, 1) in each of 4 dimensions: a round moves by at most 1 + sqrt(4) standard deviations."""
    found = standard(1, 4)
    for _ in range(80):
        before, found = found, fit_round(lambda u: 100 - u, found, 1.0)
        assert float((found.loc - before.loc).norm()) < 3 + 1e-9
    torch.testing.assert_close(found.loc, torch.full((1, 4), 100.0, dtype=DOUBLE))


def test_laplace_approximation_of_a_gamma_posterior() -> None:
    """log p(u) = a u - b e^u, the log-density of log Gamma(a, b): mode log(a / b), curvature a."""
    a, b = torch.tensor([[2.0], [30.0]], dtype=DOUBLE), torch.tensor([[3.0], [1.0]], dtype=DOUBLE)
    found = standard(2, 1)
    for _ in range(10):
        found = fit_round(lambda u: a - b * u.exp(), found, 1.0, radius=1e-3)
    torch.testing.assert_close(found.loc, (a / b).log(), rtol=0, atol=1e-6)
    torch.testing.assert_close(covariances(found).squeeze(2), 1 / a, rtol=1e-5, atol=0)


def test_rounds_reach_the_optimum_of_the_elbo() -> None:
    """For log p(u) = a u - b e^u the best Gaussian N(m, v) has b e^(m + v/2) = a and 1/v = a, in closed form.

    1,000 images are as many independent fits; their mean is compared at 5 s.e. plus a bias of 0.01, which falls with
    the number of rotations, and false alarms are below 1e-6. The Laplace approximation differs by v/2 = 0.17 in m.
    """
    a, b = 3.0, 2.0
    torch.manual_seed(0)
    found = standard(1000, 1)
    for rate in (*[0.5] * 6, *(1 / k for k in range(2, 30))):
        found = fit_round(lambda u: a - b * u.exp(), found, rate, num_rotations=32)
    mean, variance = found.loc.flatten(), covariances(found).flatten()
    for values, expected in ((mean, math.log(a / b) - 1 / (2 * a)), (variance, 1 / a)):
        error = float(values.std()) / math.sqrt(1000)
        assert abs(float(values.mean()) - expected) < 5 * error + 0.01


def test_image_with_an_undefined_gradient_keeps_its_gaussian() -> None:
    """The gradient of the second of three images is NaN; the fits of the others do not change."""

    def broken(u: Tensor) -> Tensor:
        gradient = -4 * u
        gradient[:, 1] = torch.nan
        return gradient

    found = fit_round(broken, standard(3, 2), 1.0)
    expected = torch.stack([0.25 * torch.eye(2), torch.eye(2), 0.25 * torch.eye(2)]).double()
    torch.testing.assert_close(covariances(found), expected)


def test_indefinite_curvature_widens_by_at_most_two() -> None:
    """log p = +|u|^2 / 2 has no Gaussian; a round at most doubles the standard deviations."""
    found = fit_round(lambda u: u, standard(1, 3), 1.0)
    torch.testing.assert_close(covariances(found), 4 * torch.eye(3, dtype=DOUBLE)[None])
