"""Missing pixels: the conditional distributions of the linear-Gaussian program and of a Bernoulli decoder."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.oracles import BernoulliDecoder, LinearGaussian
from helpers.programs import images, small_vae
from torch import Tensor

from pyro_vae.evaluate import AISConfig, ais, impute, log_weights
from pyro_vae.trace import with_missing_pixels

SETTINGS = AISConfig(num_chains=400, num_temperatures=100, num_leapfrogs=3)


def test_imputation_matches_the_conditional_of_the_linear_gaussian_program() -> None:
    """Mean and variance of three missing pixels of seven, 20 images, from 4,000 chains: means at 5 s.e.

    Variances are within 15 % of the truth. log p(x_missing | x_seen), whose error grows with how surprising the missing
    pixels are, is within 0.5 nats; false alarms 1e-3 in all.
    """
    program = LinearGaussian(2, variance_ratio=1.5)
    whole = program.simulate(20)
    x = whole.clone()
    x[:, 4:] = math.nan
    settings = AISConfig(num_chains=4000, num_temperatures=40, num_leapfrogs=3)
    found = impute(program.model, program.guide, x, settings, fill_value=program.bias, truth=whole, seed=0)
    covariance = program.weight @ program.weight.T + program.noise * torch.eye(7)
    a, b, c = covariance[:4, :4], covariance[4:, :4], covariance[4:, 4:]
    mean = program.bias[4:] + (whole[:, :4] - program.bias[:4]) @ torch.linalg.solve(a, b.T)
    conditional = c - b @ torch.linalg.solve(a, b.T)
    of_mean = (conditional - program.noise * torch.eye(3)).diagonal().sqrt()  # the spread of E[x|z]
    error = np.abs(found.mean[:, 4:] - mean.cpu().numpy()) / (of_mean / math.sqrt(3000)).cpu().numpy()
    assert error.max() < 5
    variance = np.broadcast_to(conditional.diagonal().cpu().numpy(), (20, 3))
    np.testing.assert_allclose(found.variance[:, 4:], variance, rtol=0.15)
    np.testing.assert_allclose(found.variance[:, 4:].mean(0), variance[0], rtol=0.05)
    np.testing.assert_array_equal(found.mean[:, :4], whole[:, :4].cpu().numpy())
    assert (found.variance[:, :4] == 0).all()

    of_seen = dist.MultivariateNormal(program.bias[:4], a).log_prob(whole[:, :4]).cpu().numpy()
    np.testing.assert_allclose(found.ais.lower, of_seen, atol=0.1)
    of_missing = dist.MultivariateNormal(mean, conditional).log_prob(whole[:, 4:]).cpu().numpy()
    np.testing.assert_allclose(found.log_missing, of_missing, atol=0.5)
    assert found.log_missing.mean() == pytest.approx(of_missing.mean(), abs=0.1)


def test_imputation_draws_follow_the_conditional() -> None:
    """1,000 copies of an image: means and variances of three missing pixels at 4.5 s.e., false alarms 4e-5."""
    program = LinearGaussian(2, variance_ratio=1.5)
    whole = program.simulate(1)
    x = whole.repeat(1000, 1)
    x[:, 4:] = math.nan
    settings = AISConfig(num_chains=30, num_temperatures=20, num_leapfrogs=3)
    found = torch.as_tensor(impute(program.model, program.guide, x, settings, fill_value=program.bias, seed=0).draw)
    covariance = (program.weight @ program.weight.T + program.noise * torch.eye(7)).cpu()
    a, b, c = covariance[:4, :4], covariance[4:, :4], covariance[4:, 4:]
    mean = (program.bias[4:] + (whole[0, :4] - program.bias[:4]) @ torch.linalg.solve(a, b.T).to(whole)).cpu()
    variance = (c - b @ torch.linalg.solve(a, b.T)).diagonal()
    assert ((found[:, 4:].mean(0) - mean).abs() < 4.5 * (variance / 1000).sqrt()).all()
    assert ((found[:, 4:].var(0) - variance).abs() < 4.5 * variance * math.sqrt(2 / 999)).all()
    assert torch.equal(found[:, :4], x[:, :4].cpu())


def test_missing_pixels_of_a_bernoulli_decoder_match_quadrature() -> None:
    """p(x_missing | x_seen) = p(x) / p(x_seen), both by quadrature: ten images, each with its own gaps.

    2,000 chains have errors of 0.03 to 0.06 nats where p(x_missing | z) varies most.
    """
    program = BernoulliDecoder(2)
    whole = torch.bernoulli(torch.full((10, 6), 0.5))
    x = torch.where(torch.rand(10, 6) < 0.4, math.nan, whole)
    settings = AISConfig(num_chains=2000, num_temperatures=60, num_leapfrogs=3)
    found = impute(program.model, program.guide, x, settings, fill_value=torch.full((6,), 0.5), truth=whole, seed=0)
    axis = torch.linspace(-8, 8, 401)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        log_prior = dist.Normal(0.0, 1.0).log_prob(grid).sum(1) + 2 * math.log(axis[1] - axis[0])
        pixels = dist.Bernoulli(logits=program.net(grid)).log_prob(whole.unsqueeze(1))  # (image, point, pixel)
        joint = log_prior + pixels.where(~x.isnan().unsqueeze(1), 0).sum(-1)
        log_seen = joint.logsumexp(1)
        ones = (joint - log_seen.unsqueeze(1)).exp() @ program.net(grid).sigmoid()
    np.testing.assert_allclose(found.ais.lower, log_seen.cpu(), atol=0.1)
    truth = (program.log_evidence(whole) - log_seen).cpu().numpy()
    np.testing.assert_allclose(found.log_missing, truth, atol=0.2)
    expected = torch.where(x.isnan(), ones, x).cpu().numpy()
    np.testing.assert_allclose(found.mean, expected, atol=0.1)


def test_observed_pixels_outside_the_support_are_rejected() -> None:
    vae, x = small_vae(), images(4)
    fill = torch.full((3, 2), 0.4)  # itself outside the support: masked values do not count
    x[:, 2] = math.nan
    x[1, 0, 0] = 0.37
    with pytest.raises(ValueError, match=r"observes 0\.37, outside the support"):
        impute(vae.model, vae.guide, x, SETTINGS, fill_value=fill)
    x[1, 0, 0] = 1.0
    with pytest.raises(ValueError, match=r"observes 0\.5, outside the support"):
        impute(vae.model, vae.guide, x, SETTINGS, fill_value=fill, truth=torch.full((4, 3, 2), 0.5))


def test_likelihood_undefined_at_zero_can_be_imputed() -> None:
    """LogNormal pixels with gaps: transitions are accepted, and log p(x_seen) is that of the observed pixel."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.LogNormal(z.unsqueeze(-1).expand(*z.shape, 2), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(x.log().mean(-1), 1.0))

    x = torch.tensor([[0.5, math.nan], [3.0, math.nan]])
    found = impute(model, guide, x, SETTINGS, fill_value=torch.ones(2), seed=0).ais
    assert (found.acceptance > 0.5).all()
    truth = dist.LogNormal(0.0, 2**0.5).log_prob(x[:, 0])
    np.testing.assert_allclose(found.lower, truth.cpu(), atol=0.05)


def test_without_gaps_the_weights_are_unchanged() -> None:
    """The programs for missing pixels equal the original ones on complete images, whatever the fill value."""
    vae, x = small_vae(), images(5)
    of_seen, filled = with_missing_pixels(vae.model, vae.guide, torch.rand(3, 2))
    found, expected = (log_weights(m, g, x, 7, seed=0) for m, g in ((of_seen, filled), (vae.model, vae.guide)))
    torch.testing.assert_close(found, expected)


def test_fully_missing_images_follow_the_prior() -> None:
    """p(x_seen) is 1, and the completion is the mean image under the prior."""
    vae = small_vae()
    x = torch.full((4, 3, 2), math.nan)
    found = impute(vae.model, vae.guide, x, SETTINGS, fill_value=torch.full((3, 2), 0.4), seed=0)
    np.testing.assert_allclose(found.ais.lower, 0, atol=0.05)
    with torch.no_grad():
        expected = vae.likelihood(torch.randn(20_000, 2)).mean.mean(0).cpu().numpy()
    np.testing.assert_allclose(found.mean, np.broadcast_to(expected, (4, 3, 2)), atol=0.06)


def test_dependent_pixels_are_rejected() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.MultivariateNormal(z, torch.eye(2)), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(x, 1.0).to_event(1))

    x = torch.tensor([[0.0, math.nan]])
    with pytest.raises(ValueError, match="Site 'x' cannot be scored with pixels missing"):
        impute(model, guide, x, AISConfig(), fill_value=torch.zeros(2))
    assert ais(model, guide, torch.zeros(1, 2), AISConfig(4, 5, 2)).lower.shape == (1,)
