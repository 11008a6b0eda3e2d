"""Capture and replay of a step, with a stand-in for a CUDA graph; on a real device, the noise of the replayed step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import fake_capture
from torch import Tensor

from pyro_vae.infer.cuda_graph import CUDAGraphCall


class Counter:
    """A function that adds its input to a total in place and returns the total."""

    def __init__(self) -> None:
        self.total = torch.zeros(())
        self.calls = 0
        self.available = True

    def __call__(self, x: Tensor) -> tuple[Tensor, ...] | None:
        self.calls += 1
        if not self.available:
            return None
        self.total += x.sum()
        return (self.total.clone(),)


@pytest.fixture
def _fake(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    if device.type == "cuda":
        pytest.skip("the stand-in is for machines without a device")
    fake_capture.install(monkeypatch)


@pytest.fixture
def count(_fake: None) -> Counter:
    return Counter()


def test_every_call_takes_effect_once_and_the_fourth_is_captured(count: Counter) -> None:
    capture = CUDAGraphCall(count, lambda x: None)
    found = [capture(torch.full((2,), float(n)))[0] for n in range(10)]
    assert [float(total) for total in found] == [n * (n + 1) for n in range(10)]  # each result is a separate tensor
    assert count.calls == 4  # three warm-up calls and the capture; the others are replays


def test_new_key_causes_a_new_capture(count: Counter) -> None:
    key = "first"
    capture = CUDAGraphCall(count, lambda x: key)
    for _ in range(6):
        capture(torch.ones(2))
    assert capture.is_captured(torch.ones(2))
    key = "second"
    assert not capture.is_captured(torch.ones(2))
    for _ in range(6):
        (total,) = capture(torch.ones(2))
    assert float(total) == 24
    assert count.calls == 8


def test_declined_calls_do_not_advance_warmup(count: Counter) -> None:
    count.available = False
    capture = CUDAGraphCall(count, lambda x: None)
    assert [capture(torch.ones(2)) for _ in range(5)] == [None] * 5
    count.available = True
    assert [float(capture(torch.ones(2))[0]) for _ in range(6)] == [2.0 * n for n in range(1, 7)]
    assert count.calls == 5 + 4


def test_call_that_repeats_a_captured_one_needs_no_warmup(count: Counter) -> None:
    part = CUDAGraphCall(count, lambda x: None)
    for _ in range(4):
        part(torch.ones(2))

    def twice(x: Tensor) -> tuple[Tensor, ...] | None:
        count(x[0])
        return count(x[1])

    whole = CUDAGraphCall(twice, lambda x: None, part=lambda: part)
    found = [float(whole(torch.full((2, 2), float(n)))[0]) for n in range(3)]
    assert found == [8.0, 12.0, 20.0]
    assert count.calls == 4 + 2


@pytest.mark.usefixtures("_fake")
def test_stand_in_executes_nothing_at_capture_and_everything_at_replay() -> None:
    """As on a device: the memory and the noise are those of the replay, and Python numbers those of the capture."""
    total, source, number = torch.zeros(3), torch.ones(3), 1.0
    torch.manual_seed(0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        noise = torch.randn(3)
        view = total[1:]
        view += source[1:] * number
        total[0].fill_(number)
        result = total + noise
    assert total.tolist() == [0, 0, 0]
    number = 5.0
    source.fill_(2.0)
    expected = torch.Generator().manual_seed(0)
    for replay in (1, 2):
        graph.replay()
        assert total.tolist() == [1, 2 * replay, 2 * replay]
        torch.testing.assert_close(result, total + torch.randn(3, generator=expected), rtol=0, atol=0)


@pytest.mark.usefixtures("_fake")
@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.sum() > 0),
        lambda x: float(x[0]),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: torch.equal(x, x),
        lambda x: torch.tensor(1.0),
    ],
)
def test_stand_in_refuses_what_waits_for_the_device(read: Callable[[Tensor], object]) -> None:
    x = torch.ones(3)
    with torch.cuda.graph(torch.cuda.CUDAGraph()), pytest.raises(RuntimeError, match="not permitted while"):
        read(x)


def test_replays_draw_new_noise(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("needs a CUDA device")
    total = torch.zeros(1000, device=device)

    def step(x: Tensor) -> tuple[Tensor, ...]:
        total.add_(x * torch.randn(1000, device=device))
        return (total.clone(),)

    capture = CUDAGraphCall(step, lambda x: None)
    torch.manual_seed(0)
    found = [capture(torch.full((1000,), float(n), device=device))[0] for n in range(8)]
    torch.manual_seed(0)
    expected = torch.zeros(1000, device=device)
    for n, result in enumerate(found):
        expected = expected + n * torch.randn(1000, device=device)
        torch.testing.assert_close(result, expected)
