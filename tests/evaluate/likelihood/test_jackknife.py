"""Jackknife corrections: the definition by all subsets, the order of the bias, and degenerate weights."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from torch import Tensor

from pyro_vae.evaluate import jackknife


def by_subsets(log_w: Tensor, order: int) -> Tensor:
    """Nowozin's equation: sum_j c(K, m, j) of the mean over subsets without j weights, c the Sharot coefficients."""
    num_samples = len(log_w)
    total = torch.zeros(log_w.shape[1:], dtype=log_w.dtype)
    for left_out in range(order + 1):
        kept = [list(s) for s in combinations(range(num_samples), num_samples - left_out)]
        mean = torch.stack([log_w[s].logsumexp(0) for s in kept]).mean(0) - math.log(num_samples - left_out)
        share = math.factorial(order - left_out) * math.factorial(left_out)
        total += (-1) ** left_out * (num_samples - left_out) ** order / share * mean
    return total


@pytest.mark.parametrize("spread", [0.5, 3.0, 20.0])
@pytest.mark.parametrize("num_samples", [3, 4, 25, 60])
def test_jackknife_matches_its_definition_by_subsets(num_samples: int, spread: float) -> None:
    """With and without the series for pairs beyond the 20 largest weights, and with one or two dominant weights."""
    log_w = (spread * torch.randn(num_samples, 3)).double()
    for order, found in enumerate(jackknife(log_w), start=1):
        torch.testing.assert_close(found, by_subsets(log_w, order), rtol=1e-11, atol=1e-11)


def biases(num_samples: int, low: float = 0.9, high: float = 1.4, p: float = 0.2) -> Tensor:
    """Return the exact bias of the plain estimate, JVI-1 and JVI-2 for weights `high` with probability p, else `low`.

    The mean weight is 1, so that log p(x) = 0. Only the number of high weights matters, which is binomial.
    """
    counts = torch.arange(num_samples + 1)
    is_high = torch.arange(num_samples).unsqueeze(1) < counts
    log_w = torch.where(is_high, high, torch.tensor(low, dtype=torch.float64)).log()
    chance = torch.distributions.Binomial(num_samples, torch.tensor(p, dtype=torch.float64)).log_prob(counts).exp()
    estimates = (log_w.logsumexp(0) - math.log(num_samples), *jackknife(log_w))
    return torch.stack([(chance * estimate).sum() for estimate in estimates])


def test_each_correction_reduces_the_order_of_the_bias() -> None:
    """Decreasing at K = 4, 8, 16; the slopes from 8 to 16 show orders 1/K, 1/K^2 and 1/K^3, up to the next order."""
    sizes = {k: biases(k).abs() for k in (4, 8, 16)}
    for plain, first, second in sizes.values():
        assert plain > 3 * first > 9 * second
    slopes = ((sizes[16] / sizes[8]).log() / math.log(2)).tolist()
    assert slopes == pytest.approx([-1, -2, -3], abs=0.35)


@pytest.mark.parametrize("num_samples", [1_000, 1_000_000])
def test_a_constant_factor_of_the_weights_is_added_to_within_rounding(num_samples: int) -> None:
    """Weights of log p(x) near -2,800 nats, exact multiples of 2^-30, so that the shift itself does not round."""
    log_w = (0.1 * torch.randn(num_samples, 2)).double().mul(2**30).round() / 2**30
    for here, there in zip(jackknife(log_w), jackknife(log_w - 2800.0), strict=True):
        torch.testing.assert_close(there + 2800.0, here, rtol=0, atol=1e-9)


def test_equal_weights_need_no_correction_however_many() -> None:
    for num_samples in (3, 21, 1_000, 1_000_000):
        for found in jackknife(torch.full((num_samples, 1), -2800.0, dtype=torch.float64)):
            assert found.item() == pytest.approx(-2800.0, abs=1e-9)


def test_correction_of_many_weights_matches_the_expansion_of_the_bias() -> None:
    """The bias of log(mean) is -v / (2K) + O(1/K^2) with v = var(w) / mean(w)^2, which JVI-1 adds up to O(1/K^2).

    JVI-1 and JVI-2 then differ by O(1/K^2) as well: here v is about 0.01, and K 1,000,000.
    """
    log_w = (0.1 * torch.randn(1_000_000, 2)).double()
    w, plain = log_w.exp(), log_w.logsumexp(0) - math.log(1_000_000)
    first, second = jackknife(log_w)
    torch.testing.assert_close((first - plain) * 2_000_000, w.var(0) / w.mean(0) ** 2, rtol=1e-4, atol=0)
    torch.testing.assert_close(second, first, rtol=0, atol=1e-10)


def test_degenerate_weights() -> None:
    equal = torch.full((50,), -90.0, dtype=torch.float64)
    zeros, dominant, missing = (torch.zeros(50, dtype=torch.float64) for _ in range(3))
    zeros[:10], dominant[3], missing[3] = -math.inf, 800.0, math.nan
    first, second = jackknife(torch.stack([equal, zeros, dominant, missing], 1))
    assert first[0].item() == pytest.approx(-90)
    assert second[0].item() == pytest.approx(-90)
    expected = by_subsets(zeros.unsqueeze(1), 2).item()
    assert second[1].item() == pytest.approx(expected)
    assert first[2:].isnan().all()
    assert second[2:].isnan().all()
    two = jackknife(torch.zeros(2, 1).double())
    assert two[0].item() == pytest.approx(0)
    assert two[1].isnan().all()
    assert jackknife(torch.zeros(1, 1).double())[0].isnan().all()
