r"""Steps timed against one another on a machine that drifts, and the ratios drawn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

Step = Callable[[Tensor], object]


class Contender(NamedTuple):
    """A step, and the context in which a block of them runs."""

    step: Step
    context: Callable[[], AbstractContextManager[Any]] = nullcontext


class Timing(NamedTuple):
    """Median seconds of one step, and the median of its ratios to the last contender in the same block."""

    seconds: float
    ratio: float


def race(
    contenders: Mapping[str, Contender], stream: Iterator[Tensor], blocks: int, seconds: float
) -> dict[str, Timing]:
    """Time blocks of each contender in turn.

    Args:
        contenders: by name; ratios are to the last.
        stream: what the steps take.
        blocks: of each that are timed, after one that is not.
        seconds: length of a block of the last.
    """
    for contender in contenders.values():  # what is compiled or drawn once is not timed
        with contender.context():
            for _ in range(3):
                contender.step(next(stream))
    from torch._inductor.async_compile import shutdown_compile_workers  # a long import, of which this alone is needed

    shutdown_compile_workers()  # which would go on for a while, on cores that are timed
    base = list(contenders.values())[-1]
    with base.context():
        turns = max(1, round(seconds / _block(base.step, stream, 3)))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for block in range(-1, blocks):
        for name, contender in contenders.items():
            with contender.context():
                taken = _block(contender.step, stream, turns)
            if block >= 0:
                times[name].append(taken)
    last = list(times.values())[-1]
    return {
        name: Timing(statistics.median(own), statistics.median(a / b for a, b in zip(own, last, strict=True)))
        for name, own in times.items()
    }


def _block(step: Step, stream: Iterator[Tensor], turns: int) -> float:
    start = time.perf_counter()
    for _ in range(turns):
        batch = next(stream)
        step(batch)
    _wait(batch.device)
    return (time.perf_counter() - start) / turns


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine_rates(device: torch.device) -> tuple[float, float]:
    """Return operations per second of a large matrix product, and bytes per second read and written by a copy."""
    size = 8192 if device.type == "cuda" else 1536
    a, b, product = (torch.randn(size, size, device=device) for _ in range(3))
    large = torch.randn(2**26, device=device)
    other = torch.empty_like(large)

    def best(action: Callable[[], object]) -> float:
        times = []
        for _ in range(10):
            start = time.perf_counter()
            action()
            _wait(device)
            times.append(time.perf_counter() - start)
        return min(times)

    return 2 * size**3 / best(lambda: torch.mm(a, b, out=product)), 8 * large.numel() / best(lambda: other.copy_(large))


def ratios(cases: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the time of a step of every contender relative to the last, and the floor of the arithmetic.

    Args:
        cases: each with batch_size, num_particles, floor_seconds, and contenders {name: {seconds, ratio}}.
    """
    names = list(cases[0]["contenders"])[:-1]
    figure = Figure(figsize=(2 + 1.5 * len(cases), 4.5), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        at = [case + (place - (len(names) - 1) / 2) * width for case in range(len(cases))]
        heights = [case["contenders"][name]["ratio"] for case in cases]
        axes.bar_label(axes.bar(at, heights, width, label=name), fmt="%.2f", fontsize=6)
    base = list(cases[0]["contenders"])[-1]
    floors = [case["floor_seconds"] / case["contenders"][base]["seconds"] for case in cases]
    lines = axes.hlines(floors, [c - 0.42 for c in range(len(cases))], [c + 0.42 for c in range(len(cases))], color="k")
    lines.set_label("floor of the arithmetic")
    axes.axhline(1, color="gray", linestyle="--", linewidth=1)
    labels = [f"batch {case['batch_size']}\nK = {case['num_particles']}" for case in cases]
    axes.set_xticks(range(len(cases)), labels)
    axes.set(ylabel=f"time of a step, relative to {base}")
    axes.legend(fontsize=7)
    return figure
