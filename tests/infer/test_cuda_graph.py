"""Capture and replay of a step, with a fake CUDA graph; on a real device, the noise of the replayed step.

The fake graph executes at replay the calls issued during capture, as a device does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_vae.infer.cuda_graph import CUDAGraphCall


class FakeGraph:
    capturing: FakeGraph | None = None

    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []

    def replay(self) -> None:
        for work in self.work:
            work()


@contextlib.contextmanager
def capturing(graph: FakeGraph) -> Iterator[None]:
    FakeGraph.capturing = graph
    yield
    FakeGraph.capturing = None


class FakeStream:
    def wait_stream(self, other: Any) -> None:
        pass


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
        result = torch.zeros(())

        def work() -> None:
            self.total += x.sum()
            result.copy_(self.total)

        if FakeGraph.capturing is None:
            work()
        else:
            FakeGraph.capturing.work.append(work)
        return (result,)


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> Counter:
    if device.type == "cuda":
        pytest.skip("the stand-in is for machines without a device")
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "current_stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
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
    key = "second"
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
