"""Active units, prior samples and reconstructions, against programs that are known."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from oracles import LinearGaussian
from torch import Tensor

from pyro_vae.evaluate import active_units, posterior_moments, prior_images, reconstructions


def guide_of(loc: Tensor, scale: float):
    def guide(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return guide


def test_active_units_are_those_whose_mean_moves() -> None:
    """Means of variance 0, 0.005, 0.02 and 1 under a posterior of scale 1: two are active, at any seed."""
    loc = torch.randn(2000, 4)
    loc = (loc - loc.mean(0)) / loc.std(0) * torch.tensor([0.0, 0.005, 0.02, 1.0]).sqrt()
    for seed in range(5):
        moments = posterior_moments(guide_of(loc, 1.0), loc, seed=seed)
        assert active_units(moments) == 2


def test_units_of_all_sites_are_counted() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z1", dist.Normal(x, 0.1).to_event(1))
            pyro.sample("z2", dist.Normal(x[:, 0], 0.1))

    assert active_units(posterior_moments(guide, torch.randn(500, 3))) == 4


def test_posterior_moments() -> None:
    """Means within 5 s.e. of 10,000 draws, variances likewise: 40 comparisons, false alarms 2e-5."""
    loc = torch.randn(10, 2)
    moments = posterior_moments(guide_of(loc, 0.5), loc, num_samples=10_000, seed=0)
    assert ((moments.mean - loc).abs() < 5 * 0.5 / 100).all()
    assert ((moments.variance - 0.25).abs() < 5 * 0.25 * 0.02**0.5 / 10).all()


def test_prior_images_are_means_under_the_prior() -> None:
    program = LinearGaussian(2)
    like = torch.zeros(20_000, 7)
    samples = prior_images(program.model, like, seed=0)
    covariance = program.weight @ program.weight.T
    error = (covariance.diagonal() / 20_000).sqrt()
    assert ((samples.mean(0) - program.bias).abs() < 4 * error).all()  # false alarms 4e-4 in all
    torch.testing.assert_close(samples.T.cov(), covariance, rtol=0.1, atol=0.1)
    assert torch.equal(samples, prior_images(program.model, like, seed=0))


def test_reconstructions_are_means_under_the_posterior() -> None:
    program = LinearGaussian(2)
    x = program.simulate(1).expand(20_000, 7)
    found = reconstructions(program.model, program.guide, x, seed=0)
    expected = program.posterior_mean(x[:1]) @ program.weight.T + program.bias
    spread = (program.weight @ program.covariance @ program.weight.T).diagonal()
    assert ((found.mean(0) - expected).abs() < 4 * (spread / 20_000).sqrt()).all()
