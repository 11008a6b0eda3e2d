"""The kernel distance: its definition by loops, closed forms of its expectation, and its standard error."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_vae.evaluate import kernel_distance


def test_distance_matches_its_definition_by_loops() -> None:
    a, b = torch.randn(14, 3), torch.randn(25, 3) + 1

    def kernel(x: Tensor, y: Tensor) -> float:
        return (float(x @ y) / 3 + 1) ** 3

    within = [np.mean([kernel(x, y) for x, y in itertools.permutations(z, 2)]) for z in (a, b)]
    between = np.mean([kernel(x, y) for x, y in itertools.product(a, b)])
    found = kernel_distance(a, b)
    assert found.value == pytest.approx(sum(within) - 2 * between)
    # The jackknife: 14 and 25 images in groups of 2 or 1 and of 3 or 2.
    left_out = [
        kernel_distance(*(torch.cat([p for i, p in enumerate(z.tensor_split(10)) if i != g]) for z in (a, b))).value
        for g in range(10)
    ]
    assert found.error == pytest.approx(math.sqrt(9 / 10 * np.square(left_out - np.mean(left_out)).sum()))


def squared_mmd_of_units(mean: float, other: float) -> float:
    """Return MMD^2 between mean +- 1 and other +- 1: E (x y + 1)^3 is a polynomial in the moments."""

    def moments(m: float) -> tuple[float, ...]:
        return 1.0, m, m**2 + 1, m**3 + 3 * m

    def expected(m: float, n: float) -> float:
        return sum(math.comb(3, k) * p * q for k, (p, q) in enumerate(zip(moments(m), moments(n), strict=True)))

    return expected(mean, mean) + expected(other, other) - 2 * expected(mean, other)


def signs(number: int) -> Tensor:
    return torch.randint(2, (number, 1)).to(torch.get_default_dtype()) * 2 - 1


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_estimate_is_unbiased_and_its_error_covers_the_spread_over_repeats(shift: float) -> None:
    """400 repeats of 40 against 60 draws: the mean within 4 s.e. of the closed form, false alarms 6e-5.

    The root mean square of the errors is that of the spread, or up to sqrt(2) of it for equal distributions, to 20 %:
    five times the uncertainty of the s.d. of 400 values.
    """
    expected = squared_mmd_of_units(0.0, shift)
    assert (expected == 0) == (shift == 0)
    found = np.array([kernel_distance(signs(40), signs(60) + shift) for _ in range(400)])
    spread = found[:, 0].std(ddof=1)
    assert abs(found[:, 0].mean() - expected) < 4 * spread / 20
    ratio = math.sqrt((found[:, 1] ** 2).mean()) / spread
    assert 0.8 < ratio < 1.2 * (2**0.5 if shift == 0 else 1)


def test_few_images() -> None:
    assert math.isfinite(kernel_distance(torch.randn(3, 2), torch.randn(3, 2)).error)
    value, error = kernel_distance(torch.randn(2, 2), torch.randn(3, 2))
    assert math.isfinite(value)
    assert math.isnan(error)
    with pytest.raises(ValueError, match="at least two images; there are 1 and 3"):
        kernel_distance(torch.randn(1, 2), torch.randn(3, 2))
