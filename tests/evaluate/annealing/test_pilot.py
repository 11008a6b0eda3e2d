"""What the pilot run sets: fitted Gaussians, scales and temperatures, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.oracles import BernoulliDecoder
from torch import Tensor

from pyro_vae.evaluate import AISConfig, ais
from pyro_vae.evaluate.annealing.gaussians import Gaussian, Scales, fit_gaussian
from pyro_vae.evaluate.annealing.paths import STARTS, AnnealingPath
from pyro_vae.evaluate.annealing.schedules import interpolate, linear, place_temperatures, sigmoid
from pyro_vae.trace import read_only


def random_covariances(size: int) -> Tensor:
    """Return two positive definite matrices (2, D, D) with eigenvalues from about 0.1 to 3."""
    root = torch.randn(2, size, size) / math.sqrt(size)
    return root @ root.mT + 0.1 * torch.eye(size)


def divergence(fitted: Gaussian, mean: Tensor, covariance: Tensor) -> Tensor:
    """Return KL(true || fitted) for each image."""
    q = dist.MultivariateNormal(fitted.mean, scale_tril=fitted.root)
    return torch.distributions.kl_divergence(dist.MultivariateNormal(mean, covariance), q)


def test_gradients_fit_a_gaussian_from_few_samples() -> None:
    """80 samples of 20 units: a tenth of the divergence of their own moments, which is 1.7 nats on average, or less."""
    mean, covariance = torch.randn(2, 20), random_covariances(20)
    u = dist.MultivariateNormal(mean, covariance).sample((80,))
    gradient = -torch.linalg.solve(covariance, (u - mean).unsqueeze(-1))[..., 0]
    fitted = fit_gaussian(u, gradient)
    moments = Gaussian(u.mean(0), torch.linalg.cholesky(torch.stack([u[:, i].T.cov() for i in range(2)])))
    assert (divergence(fitted, mean, covariance) < 0.1 * divergence(moments, mean, covariance)).all()


def test_independent_units_of_a_gaussian_are_fitted_exactly() -> None:
    """More units than full covariances have: any three samples suffice."""
    mean, scale = torch.randn(2, 300), torch.rand(2, 300) + 0.1
    u = mean + scale * torch.randn(3, 2, 300)
    fitted = fit_gaussian(u, (mean - u) / scale.square())
    torch.testing.assert_close(fitted.mean, mean)
    torch.testing.assert_close(fitted.root, scale)


def test_gaussian_fitted_to_two_modes_covers_both() -> None:
    """0.5 N(-a, s^2) + 0.5 N(a, s^2): the variance s^2 + a^2, where that of the gradients alone is far smaller.

    With half of the samples in each mode and D = 1, the only error is that of the noise within modes: 4 s.e. of it.
    """
    place, noise = 2.0, 0.1
    sign = torch.tensor([-1.0, 1.0]).repeat(100).view(-1, 1, 1)
    u = sign * place + noise * torch.randn(200, 1, 1)
    gradient = (sign * place - u) / noise**2  # the modes are 40 standard deviations apart
    variance = fit_gaussian(u, gradient).root.square().item()
    narrow = place * noise  # variance of the Gaussian with the nearest gradient, about
    assert variance > 8 * narrow
    assert abs(variance - (place**2 + noise**2)) < 4 * place**2 * 2 / math.sqrt(200)


def test_image_with_nonfinite_gradients_gets_the_moments_of_its_samples() -> None:
    u = torch.randn(500, 2, 3) * torch.tensor([1.0, 2.0, 3.0])
    gradient = -u.clone()
    gradient[7, 1, 2] = torch.nan
    fitted = fit_gaussian(u, gradient)
    assert fitted.root.isfinite().all()
    variances = fitted.root[1].square().sum(-1)
    torch.testing.assert_close(variances, u[:, 1].var(0, unbiased=False), rtol=0.05, atol=0)
    stuck = fit_gaussian(torch.zeros(10, 1, 3), torch.zeros(10, 1, 3))
    assert stuck.root.isfinite().all()


def test_log_density_and_gradient_of_fitted_gaussians() -> None:
    mean, covariance, u = torch.randn(2, 4), random_covariances(4), torch.randn(5, 2, 4, requires_grad=True)
    full = Gaussian(mean, torch.linalg.cholesky(covariance))
    diagonal = Gaussian(mean, torch.rand(2, 4) + 0.5)
    for gaussian, covariance_ in ((full, covariance), (diagonal, diagonal.root.square().diag_embed())):
        expected = dist.MultivariateNormal(mean, covariance_).log_prob(u)
        (slope,) = torch.autograd.grad(expected.sum(), u)
        found, gradient = gaussian.evaluate(u.detach())
        torch.testing.assert_close(found, expected.detach())
        torch.testing.assert_close(gradient, slope)


def test_scales_have_the_covariance_of_a_gaussian_path() -> None:
    """C_b C_b' is the inverse of the interpolated precision, for full and for diagonal covariances."""
    scale, covariance = torch.rand(2, 4) + 0.5, random_covariances(4)
    diagonal = torch.rand(2, 4) + 0.5
    start = scale.square().diag_embed().inverse()
    for posterior in (torch.linalg.cholesky(covariance), diagonal):
        scales = Scales.between(scale, Gaussian(torch.zeros(2, 4), posterior))
        end = posterior.square().diag_embed() if posterior.dim() == 2 else covariance
        for b in (0.0, 0.3, 1.0):
            root = scales.at(b)
            root = root.diag_embed() if root.dim() == 2 else root
            torch.testing.assert_close(root @ root.mT, ((1 - b) * start + b * end.inverse()).inverse())


def test_temperatures_have_equal_thermodynamic_length() -> None:
    """For Var_b = c / (b + a)^2, whose length up to b is log((b + a) / a), any c; a tenth of the steps is linear."""
    a, b = 0.01, linear(20_000)
    variances = torch.stack([c / (b + a) ** 2 for c in (1.0, 50.0)], 1)
    found = place_temperatures(b, variances, 30).numpy()
    position = 0.9 * np.log((found + a) / a) / math.log((1 + a) / a) + 0.1 * found
    np.testing.assert_allclose(position, np.linspace(0, 1, 31), atol=1e-4)


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_unknown_variances_leave_the_temperatures_of_the_pilot_run(value: float) -> None:
    """E.g. if f_0 is the posterior, or a particle has no density."""
    b = sigmoid(20)
    torch.testing.assert_close(place_temperatures(b, torch.full((21, 3), value), 20), b)
    coarse = place_temperatures(b, torch.full((21, 3), value), 10)
    torch.testing.assert_close(coarse, b[::2])
    torch.testing.assert_close(interpolate(coarse, b, b.unsqueeze(-1))[:, 0], coarse)


@pytest.mark.parametrize("start", STARTS)
def test_two_far_modes_keep_the_mean_weight_unbiased(start: str) -> None:
    """A posterior with modes at -2 and 2: mean of w over 400 runs of 8 chains, within 4 s.e. By quadrature.

    False alarms 6e-5 for each of the three, and more for heavy tails: the largest weight is about ten times the mean.
    """

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.5).to_event(1))
            pyro.sample("x", dist.Normal(z.square(), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(1), 1.5).to_event(1))

    axis = torch.linspace(-9, 9, 20_001)
    joint = dist.Normal(0.0, 1.5).log_prob(axis) + dist.Normal(axis.square(), 1.0).log_prob(torch.tensor(4.0))
    truth = float(joint.logsumexp(0) + math.log(axis[1] - axis[0]))
    found = ais(model, guide, torch.full((400, 1), 4.0), AISConfig(8, 30, 3, start), seed=0)
    ratio = np.exp(found.lower - truth)
    assert abs(ratio.mean() - 1) < 4 * ratio.std(ddof=1) / math.sqrt(400)
    assert abs((found.lower - truth).mean()) < 0.1


def test_densities_without_gradients_are_those_of_the_path() -> None:
    """For every start, a fitted Gaussian included."""
    program, x = BernoulliDecoder(2), torch.ones(3, 6)
    for start in STARTS:
        with read_only(program.model, program.guide, x=x, seed=0, validate=False):
            path = AnnealingPath(program.model, program.guide, x, start)
            if start == "gaussian":
                path = path.starting_from(Gaussian(torch.zeros(3, 2).double(), 2 * torch.ones(3, 2).double()))
            state = path.evaluate(path.draw(4).u)
            torch.testing.assert_close(path.log_densities(state.u), (state.log_start, state.log_joint))
