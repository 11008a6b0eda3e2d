"""Simulation-based calibration: uniform ranks for the exact posterior, rejected for a guide too narrow or shifted."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.oracles import LinearGaussian
from scipy.stats import chisquare
from torch import Tensor

from pyro_vae.evaluate import sbc_ranks


def ranks_of(ratio: float, number: int) -> np.ndarray:
    """Return ranks of three latents of simulated images among 99 draws of a guide with `variance_ratio`."""
    program = LinearGaussian(3, variance_ratio=ratio)
    ranks = sbc_ranks(program.model, program.guide, torch.zeros(number, 7), 99, seed=0)
    assert ranks.shape == (number, 3)
    return ranks


def p_values(ranks: np.ndarray) -> np.ndarray:
    """Return chi-square p-values over ten bins of the ranks, one per unit."""
    return np.array([chisquare(np.bincount(unit // 10, minlength=10)).pvalue for unit in ranks.T])


@pytest.mark.parametrize("number", [1_000, 5_000])
def test_ranks_of_the_exact_posterior_are_uniform(number: int) -> None:
    """Three units at a level of 1e-4 in all. The probability that 3,000 ranks lack 0 or 99 is 2e-13."""
    ranks = ranks_of(1.0, number)
    assert (ranks.min(), ranks.max()) == (0, 99)
    assert (p_values(ranks) > 1e-4 / 3).all()


@pytest.mark.parametrize("number", [1_000, 5_000])
@pytest.mark.parametrize("ratio", [0.49, 2.0])
def test_ranks_of_a_guide_of_the_wrong_width_are_not_uniform(ratio: float, number: int) -> None:
    """0.7 and 1.4 times the scale."""
    assert (p_values(ranks_of(ratio, number)) < 1e-9).all()


def test_ranks_with_ties_are_uniform() -> None:
    """A discrete latent and its exact posterior, 5,000 images: chi-square at a level of 1e-4."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Bernoulli(0.3))

    ranks = sbc_ranks(model, guide, torch.zeros(5_000), 9, seed=0)
    assert chisquare(np.bincount(ranks[:, 0], minlength=10)).pvalue > 1e-4


def test_ranks_show_the_direction_of_a_shift() -> None:
    program = LinearGaussian(2)

    def shifted(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            mean = program.posterior_mean(x) + torch.tensor([1.0, 0.0])
            pyro.sample("z", dist.MultivariateNormal(mean, scale_tril=program.scale_tril))

    ranks = sbc_ranks(program.model, shifted, torch.zeros(2_000, 7), 99, seed=0)
    assert ranks[:, 0].mean() < 40  # the truth ranks low among draws that are shifted up
    assert ranks[:, 1].mean() == pytest.approx(49.5, abs=4 * 28.9 / 2_000**0.5)
