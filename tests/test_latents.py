"""Posterior moments and active units, against programs that are known."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.evaluate import active_units, posterior_moments


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
