r"""Interleaved timing of steps, which is robust to drifts of the clock, and a figure of the ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.report.drawing import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Step = Callable[[Tensor], object]


class Contender(NamedTuple):
    """A step, and a function that returns the context in which a block of steps runs."""

    step: Step
    context: Callable[[], AbstractContextManager[Any]] = nullcontext


class Timing(NamedTuple):
    """Median time of a step in seconds, and median ratio to the last contender, paired by block."""

    seconds: float
    ratio: float


def race(
    contenders: Mapping[str, Contender], stream: Iterator[Tensor], blocks: int, seconds: float, multiple: int = 1
) -> dict[str, Timing]:
    """Time interleaved blocks of the contenders.

    Args:
        contenders: Contenders by name. Ratios are relative to the last one.
        stream: Batches for the steps.
        blocks: Number of timed blocks of each contender, after one block that is not timed.
        seconds: Length of a block of the last contender, in seconds. All blocks have the same number of steps.
        multiple: This number is a multiple of it, so that a contender may take as many steps at once.
    """
    for contender in contenders.values():  # warm-up, so that compilation and initialization are not timed
        with contender.context():
            for _ in range(3):
                contender.step(next(stream))
    from torch._inductor.async_compile import shutdown_compile_workers  # imported on use: the import is slow

    shutdown_compile_workers()  # idle workers would compete for the cores for a while
    base = list(contenders.values())[-1]
    with base.context():
        num_steps = multiple * max(1, round(seconds / _block(base.step, stream, 3) / multiple))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for block in range(-1, blocks):
        for name, contender in contenders.items():
            with contender.context():
                seconds_per_step = _block(contender.step, stream, num_steps)
            if block >= 0:
                times[name].append(seconds_per_step)
    last = list(times.values())[-1]
    return {
        name: Timing(statistics.median(taken), statistics.median(a / b for a, b in zip(taken, last, strict=True)))
        for name, taken in times.items()
    }


def _block(step: Step, stream: Iterator[Tensor], num_steps: int) -> float:
    start = time.perf_counter()
    for _ in range(num_steps):
        batch = next(stream)
        step(batch)
    _wait(batch.device)
    return (time.perf_counter() - start) / num_steps


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine_rates(device: torch.device) -> tuple[float, float]:
    """Measure the operations per second of a large matrix product, and the bytes per second that a copy moves."""
    size = 8192 if device.type == "cuda" else 1536
    a, b, product = (torch.randn(size, size, device=device) for _ in range(3))
    source = torch.randn(2**26, device=device)
    target = torch.empty_like(source)

    def best(action: Callable[[], object]) -> float:
        times = []
        for _ in range(10):
            start = time.perf_counter()
            action()
            _wait(device)
            times.append(time.perf_counter() - start)
        return min(times)

    return 2 * size**3 / best(lambda: torch.mm(a, b, out=product)), 8 * source.numel() / best(
        lambda: target.copy_(source)
    )


def ratios(cases: Sequence[Mapping[str, Any]]) -> Figure:
    """Plot the time of a step of each contender relative to the last one, and the roofline.

    Args:
        cases: Mappings with batch_size, num_particles, floor_seconds, and contenders {name: {seconds, ratio}}.
    """
    names = list(cases[0]["contenders"])[:-1]
    figure = new_figure(2 + 1.5 * len(cases), 4.5)
    axes = figure.subplots()
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        centers = [case + (index - (len(names) - 1) / 2) * width for case in range(len(cases))]
        heights = [case["contenders"][name]["ratio"] for case in cases]
        axes.bar_label(axes.bar(centers, heights, width, label=name), fmt="%.2f", fontsize=6)
    base = list(cases[0]["contenders"])[-1]
    floors = [case["floor_seconds"] / case["contenders"][base]["seconds"] for case in cases]
    lines = axes.hlines(floors, [c - 0.42 for c in range(len(cases))], [c + 0.42 for c in range(len(cases))], color="k")
    lines.set_label("roofline")
    axes.axhline(1, color="gray", linestyle="--", linewidth=1)
    labels = [f"batch {case['batch_size']}\nK = {case['num_particles']}" for case in cases]
    axes.set_xticks(range(len(cases)), labels)
    axes.set(ylabel=f"time of a step, relative to {base}")
    axes.legend(fontsize=7)
    return figure
