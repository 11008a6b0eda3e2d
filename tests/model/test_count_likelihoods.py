"""Likelihoods of counts: normalization, mean and variance, and initialization from the data."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from pyro_vae.config import components
from pyro_vae.model import nets

COLUMNS = 4
MEANS = [0.5, 2.0, 7.0, 20.0]


def counts_of(number: int) -> Tensor:
    """Draw negative binomial rows with dispersion 3 and variance m (1 + m / 3)."""
    rates = torch.distributions.Gamma(3.0, 3.0 / torch.tensor(MEANS)).sample((number,))
    return torch.poisson(rates)


def likelihood_of(name: str, spread: float = 0.0, rows: Tensor | None = None) -> nn.Module:
    rows = counts_of(2000) if rows is None else rows
    part = components.LIKELIHOODS[name](partial(nets.Dense((COLUMNS,), 4, depth=1).decoder, 2), rows)
    with torch.no_grad():
        part.net[-2][-1].weight.zero_()  # leaves the initialization, whatever z
        for parameter in part.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return part.to(torch.get_default_device())


@pytest.mark.parametrize("name", ["poisson", "negative-binomial"])
def test_probability_sums_to_one(name: str) -> None:
    q = likelihood_of(name, spread=0.3)(torch.randn(5, 2)).base_dist
    total = q.log_prob(torch.arange(4000.0).view(-1, 1, 1)).exp().sum(0)
    torch.testing.assert_close(total, torch.ones(5, COLUMNS))


def test_probabilities_match_scipy() -> None:
    """A negative binomial of mean m and dispersion d has d successes with probability d / (d + m)."""
    likelihood, z = likelihood_of("negative-binomial", spread=0.3), torch.randn(2)
    x = counts_of(6)
    found = likelihood(z).log_prob(x)
    shares, library = likelihood.net(z) + likelihood.bias
    mean = (shares.softmax(-1) * library.mean().exp()).detach().cpu().double().numpy()
    dispersion = likelihood.log_dispersion.exp().detach().cpu().double().numpy()
    expected = stats.nbinom(dispersion, dispersion / (dispersion + mean)).logpmf(x.cpu().numpy()).sum(-1)
    torch.testing.assert_close(found, torch.as_tensor(expected).to(found), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["poisson", "negative-binomial"])
def test_initialization_has_the_moments_of_the_data(name: str) -> None:
    """Exactly if each column has a nonzero count, up to the 1/N that keeps means positive."""
    rows = counts_of(2000)
    q = likelihood_of(name, rows=rows)(torch.zeros(2)).base_dist
    torch.testing.assert_close(q.mean, rows.mean(0), rtol=2e-3, atol=0)
    if name == "negative-binomial":
        torch.testing.assert_close(q.variance, rows.var(0), rtol=5e-3, atol=0)
    else:
        torch.testing.assert_close(q.variance, q.mean)


@pytest.mark.parametrize("name", ["poisson", "negative-binomial"])
def test_column_of_zeros_keeps_values_and_gradients_finite(name: str) -> None:
    rows = counts_of(200)
    rows[:, 0] = 0
    likelihood = likelihood_of(name, rows=rows)
    total = likelihood(torch.randn(200, 2)).log_prob(rows).sum()
    total.backward()
    assert total.isfinite()
    assert all(p.grad.isfinite().all() for p in likelihood.parameters() if p.grad is not None)


def test_library_scales_all_columns() -> None:
    """Adding log 2 to l(z) doubles every mean."""
    likelihood, z = likelihood_of("poisson", spread=0.3), torch.randn(3, 2)
    before = likelihood(z).base_dist.mean
    with torch.no_grad():
        likelihood.bias[1] += torch.tensor(2.0).log()
    torch.testing.assert_close(likelihood(z).base_dist.mean, 2 * before)
