"""Two functions compared: equal up to rounding, and NaN or infinite at the same indices."""

from __future__ import annotations

import pytest
import torch

from pyro_vae.trace.graphs.comparison import same_results
from pyro_vae.trace.graphs.surroundings import Surroundings

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ([1.0, 2.0], [1.0, 2.0 + 1e-9], True),
        ([1.0, 2.0], [1.0, 2.1], False),
        ([0.0, 1.0], [NAN, 1.0], False),
        ([NAN, 1.0], [0.0, 1.0], False),
        ([NAN, 1.0], [NAN, 1.0 + 1e-9], True),
        ([NAN, 1.0], [NAN, 1.1], False),
        ([INF, 1.0], [INF, 1.1], False),
        ([INF, 1.0], [-INF, 1.0], False),
        ([INF, 1.0], [1e300, 1.0], False),
        ([INF, 1.0], [NAN, 1.0], False),
    ],
)
def test_results_agree_at_every_index(first: list[float], second: list[float], same: bool) -> None:
    a, b = (torch.tensor(values, dtype=torch.float64) for values in (first, second))
    surroundings = Surroundings([])
    assert same_results(lambda x: (a,), lambda x: (b,), (torch.zeros(1),), surroundings, 1e-6) == same
