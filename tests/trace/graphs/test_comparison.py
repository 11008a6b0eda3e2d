"""Two functions compared: equal up to rounding, in nats or by norm, and NaN or infinite at the same indices."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_vae.evaluate import log_weights
from pyro_vae.trace import CompiledBackend
from pyro_vae.trace.graphs import drawn_first
from pyro_vae.trace.graphs.comparison import TOLERANCE, agree, same_results
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


@pytest.mark.parametrize(
    ("size", "difference", "same"),
    [
        (100.0, 0.9e-3, True),
        (100.0, 2.1e-3, False),  # the old bound was 1e-4 of 100
        (27_000.0, 0.25, True),  # rounding of a sum of 3,000 terms in float32
        (27_000.0, 0.28, False),
        (27_000.0, 2.6, False),  # below 1e-4 of the largest entry, and decisive as a difference of log weights
        (1e-6, 1e-9, False),  # relative to its own size
    ],
)
def test_every_log_density_agrees_in_nats(size: float, difference: float, same: bool) -> None:
    a = torch.full((50, 20), -size, dtype=torch.float64)
    wrong = a.clone()
    wrong[3, 4] += difference
    assert agree([(a, wrong)], TOLERANCE, slice(1)) == same
    assert agree([(a, a), (a, wrong)], TOLERANCE, slice(2)) == same


def test_gradients_agree_by_entry_and_by_norm() -> None:
    """A wrong entry that is lost in the norm, and many small ones that are lost beside the largest entry."""
    flat = torch.ones(100_000, dtype=torch.float64)
    single = flat.clone()
    single[7] += 1e-2  # 3e-5 of the norm
    assert not agree([(flat, single)], TOLERANCE)
    peaked = torch.full((100_000,), 1e-5, dtype=torch.float64)
    peaked[0] = 1.0
    noisy = peaked.clone()
    noisy[1:] *= 5  # 4e-5 of the largest entry, and 1.3e-2 of the norm
    assert not agree([(peaked, noisy)], TOLERANCE)
    assert agree([(flat, flat * (1 + 0.9e-4))], TOLERANCE)
    # A gradient that should be zero, beside one of size 1: rounding of 1e-8 remains.
    residue = torch.tensor([1e-8, -1e-8], dtype=torch.float64)
    assert agree([(flat, flat + 1e-9), (residue, -residue)], TOLERANCE)


@pytest.mark.parametrize(("factor", "used"), [(1 + 1e-9, True), (1 + 9e-5, False), (1.019, False)])
def test_compiled_scores_that_are_off_by_nats_are_not_used(
    factor: float, used: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A compiler whose results are off by a factor, for log p(x) near -28,000 nats: 9e-5 would be 2.5 nats."""

    def compile_wrongly(record, inputs):
        return lambda *a: tuple(out if out is None or out.dim() != 2 else out * factor for out in record(*a))

    def model(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.expand(*z.shape[:-1], 90), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(torch.zeros(1), 0.1).to_event(1))

    monkeypatch.setattr(drawn_first, "compile_graph", compile_wrongly)
    x = 25 + torch.randn(6, 90)
    truth = log_weights(model, guide, x, 50, seed=0)
    found = log_weights(model, guide, x, 50, seed=0, backend=CompiledBackend())
    assert truth.mean() < -25_000
    assert (found - truth).abs().max() < 1e-3
    assert ("Not compiled" in caplog.text) == (not used)
