"""Posterior moments and active units, for programs with known posteriors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_vae.evaluate import active_units, posterior_means, posterior_moments
from pyro_vae.model import nets, posteriors
from pyro_vae.trace import derive_seed


def guide_of(loc: Tensor, scale: float):
    def guide(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return guide


def test_units_whose_mean_varies_are_active() -> None:
    """Means of variance 0, 0.005, 0.02 and 1 under a posterior of scale 1: two units are active, for any seed."""
    loc = torch.randn(2000, 4)
    loc = (loc - loc.mean(0)) / loc.std(0) * torch.tensor([0.0, 0.005, 0.02, 1.0]).sqrt()
    for seed in range(5):
        moments = posterior_moments(guide_of(loc, 1.0), loc, seed=seed)
        assert active_units(moments) == 2


def test_active_units_include_all_sites() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z1", dist.Normal(x, 0.1).to_event(1))
            pyro.sample("z2", dist.Normal(x[:, 0], 0.1))

    assert active_units(posterior_moments(guide, torch.randn(500, 3))) == 4


def test_posterior_moments_match_the_guide() -> None:
    """Means within 5 s.e. of 10,000 draws, variances within 5 s.e.: 40 comparisons, false alarms 2e-5."""
    loc = torch.randn(10, 2)
    moments = posterior_moments(guide_of(loc, 0.5), loc, num_samples=10_000, seed=0)
    assert ((moments.mean - loc).abs() < 5 * 0.5 / 100).all()
    assert ((moments.variance - 0.25).abs() < 5 * 0.25 * 0.02**0.5 / 10).all()


@pytest.mark.parametrize(
    "distribution",
    [
        lambda loc: dist.Normal(loc, 3.0).to_event(1),
        lambda loc: dist.Delta(loc).to_event(1),
        lambda loc: dist.MultivariateNormal(loc, torch.eye(3)),
        lambda loc: dist.Normal(loc, 3.0).mask(False).to_event(1),
    ],
)
def test_closed_form_means_are_exact(distribution: Callable[[Tensor], dist.Distribution]) -> None:
    loc = torch.randn(10, 3)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", distribution(x))

    assert torch.equal(posterior_means(guide, loc, seed=0), loc.double())


def of_module(posterior: nn.Module, x: Tensor) -> None:
    with pyro.plate("data", x.shape[0]):
        pyro.sample("z", posterior(x))


def test_mean_of_a_mixture_matches_its_draws() -> None:
    """Within 5 s.e. of 10,000 draws: 20 comparisons, false alarms 1e-5."""
    posterior = posteriors.Mixture(nets.Dense((3,), 8, depth=1).encoder, 2)
    for p in posterior.parameters():
        nn.init.normal_(p)
    guide, x = partial(of_module, posterior), torch.randn(10, 3)
    drawn = posterior_moments(guide, x, num_samples=10_000, seed=0)
    assert ((drawn.mean - posterior_means(guide, x)).abs() < 5 * (drawn.variance / 10_000).sqrt()).all()


def test_mean_of_a_flow_is_estimated_from_draws() -> None:
    posterior = posteriors.IAF(nets.Dense((3,), 8, depth=1).encoder, 2)
    guide, x = partial(of_module, posterior), torch.randn(10, 3)
    assert torch.equal(
        posterior_means(guide, x, seed=0), posterior_moments(guide, x, seed=derive_seed(0, "means")).mean
    )


def test_means_of_dependent_sites_are_estimated_from_draws() -> None:
    """z2 | z1 ~ N(2 z1, 1): E z2 = 2 x, its draws have variance 5; not E[z2 | one draw of z1]. False alarms 2e-5."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            z1 = pyro.sample("z1", dist.Normal(x, 1.0).to_event(1))
            pyro.sample("z2", dist.Normal(2 * z1, 1.0).to_event(1))

    x = torch.randn(10, 2)
    error = torch.tensor([1.0, 1.0, 5.0, 5.0]).sqrt() / 10
    found = posterior_means(guide, x, seed=0)
    assert ((found - torch.cat([x, 2 * x], 1)).abs() < 5 * error).all()


def test_nan_mean_is_replaced_by_that_of_draws() -> None:
    """The `mean` of a categorical latent is NaN; its draws have one, here with all weight on one logit."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Categorical(logits=x))

    x = 1e3 * torch.eye(4)
    assert torch.equal(posterior_means(guide, x), torch.arange(4).double().unsqueeze(1))
