"""Timing of several processes that share a step, or that fit one seed each, against one process by itself."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import pyro
import torch
from contenders import batches_of, full_batches, ours
from timing import Contender, race
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from pyro_vae import config, data, ranks
from pyro_vae.infer import SVI, ShardedSVI
from pyro_vae.runs import load_images
from pyro_vae.trace.isolation import fork_rng

_SHARDS = 4  # of --deterministic-shards
_WARM_UP = 20  # steps, after which the program is seldom compared with its graph or its parts


class _Case(NamedTuple):
    """Steps that are timed: by all processes at once, or by the first one alone."""

    contender: Contender
    stream: Iterator[Any]
    together: bool


def times_of_processes(
    settings: config.Config, processes: int, batch_sizes: tuple[int, ...], blocks: int, seconds: float
) -> list[dict[str, Any]]:
    """Time a compiled step in one process of one thread and in several; print and return the results.

    Blocks of all cases are interleaved within the same processes. While the first process computes by itself, the
    others wait.

    Args:
        settings: Configuration of the program and its training steps.
        processes: Number of processes.
        batch_sizes: Numbers of images per step of one process.
        blocks: Number of timed blocks of each case.
        seconds: Length of a block of one process, in seconds.
    """
    arguments = (settings, batch_sizes, blocks, seconds)
    rows: list[dict[str, Any]] = _launch(1, _time_shards, *arguments) + _launch(processes, _time, *arguments)
    for size in batch_sizes:
        print(f"\nbatch {size}, compiled steps of processes of one thread")
        for row in (each for each in rows if each["batch_size"] == size):
            line = f"  {row['case']:30}{row['seconds'] * 1e3:9.2f} ms"
            if "ratio" in row:
                line += f"{row['ratio']:8.2f}x one process"
            if "cpu_seconds" in row:
                line += f"{row['cpu_seconds'] * 1e3:9.2f} ms of processor time"
            if "efficiency" in row:
                line += (
                    f", efficiency {100 * row['efficiency']:.0f} %, {100 * row['cpu_efficiency']:.0f} % by that time"
                )
            print(line)
    return rows


def _launch(processes: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in several processes, as torchrun starts them, and return the result of the first."""
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id="benchmark",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    return elastic_launch(launch, function)(*arguments)[0]


def _time_shards(
    settings: config.Config, batch_sizes: tuple[int, ...], blocks: int, seconds: float
) -> list[dict[str, Any]]:
    """Time a step in shards, relative to one by itself, in one process."""
    torch.set_num_threads(1)
    images = load_images(settings)
    kinds: dict[str, Callable[..., SVI]] = {f"{_SHARDS} shards": partial(ShardedSVI, shards=_SHARDS), "whole": SVI}
    rows = []
    for size in batch_sizes:
        cases = {name: _case(settings, images, size, kind) for name, kind in kinds.items()}
        for case in cases.values():
            _block(case, _WARM_UP)
        contenders = {name: case.contender for name, case in cases.items()}
        timings = race(contenders, cases["whole"].stream, blocks, seconds)
        rows += [
            {"batch_size": size, "processes": 1, "case": f"1 process, {name}", **timing._asdict()}
            for name, timing in timings.items()
        ]
    return rows


def _time(settings: config.Config, batch_sizes: tuple[int, ...], blocks: int, seconds: float) -> list[dict[str, Any]]:
    """Time all cases in one of the processes; return the rows of the report."""
    torch.set_num_threads(1)
    with ranks.process_group(settings.device):
        images = load_images(settings)
        return [row for size in batch_sizes for row in _rows(settings, images, size, blocks, seconds)]


def _rows(
    settings: config.Config, images: data.Observed, size: int, blocks: int, seconds: float
) -> list[dict[str, Any]]:
    """Time the cases of one batch size."""
    number = ranks.size()
    alone, shared, larger = "1 process", f"{number} processes", f"{number} processes, batch {number * size}"
    apart, exchange = f"{number} fits, one in each", "all-reduce"
    cases = {
        alone: _case(settings, images, size, SVI),
        apart: _case(settings, images, size, SVI)._replace(together=True),
        shared: _case(settings, images, size, ShardedSVI),
        larger: _case(settings, images, number * size, ShardedSVI),
    }
    parameters = _warm_up(cases)
    message = torch.zeros(parameters + 4, device=settings.device)
    cases[exchange] = _Case(Contender(lambda _: ranks.sum_flat(message)), cases[shared].stream, together=True)
    steps = max(1, round(seconds / _block(cases[alone], 3)[0])) if ranks.is_first() else 0
    steps = ranks.broadcast(steps)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for _ in range(blocks):
        for name, case in cases.items():
            taken = ranks.gather(_block(case, steps) if case.together or ranks.is_first() else (0.0, 0.0))
            times[name].append((max(wall for wall, _ in taken), max(cpu for _, cpu in taken)))
    # Efficiency: the time of one process over that of all of them, for the same number of images.
    share = {apart: 1.0, shared: 1 / number, larger: 1.0}
    rows = []
    for name, pairs in times.items():
        row: dict[str, Any] = {"batch_size": size, "processes": number, "case": name}
        for key, place in (("seconds", 0), ("cpu_seconds", 1)):
            row[key] = statistics.median(pair[place] for pair in pairs)
            if name in share:
                ratio = statistics.median(a[place] / b[place] for a, b in zip(times[alone], pairs, strict=True))
                row[key.replace("seconds", "efficiency")] = share[name] * ratio
        rows.append(row | ({"bytes": message.nbytes} if name == exchange else {}))
    return rows


def _case(settings: config.Config, images: data.Observed, size: int, kind: Callable[..., SVI]) -> _Case:
    pyro.set_rng_seed(settings.seed)  # the same weights in all processes
    own = replace(settings, batch_size=size)
    batches = batches_of(own, images)
    return _Case(ours(own, images, batches, "compiled", kind), full_batches(batches), kind is ShardedSVI)


def _warm_up(cases: dict[str, _Case]) -> int:
    """Take the first steps, which compile; return the number of parameters."""
    number = 0
    for case in cases.values():
        if case.together or ranks.is_first():
            _block(case, _WARM_UP)
        with case.contender.context():
            number = max(number, sum(value.numel() for value in pyro.get_param_store().values()))
    return ranks.broadcast(number)


def _block(case: _Case, steps: int) -> tuple[float, float]:
    """Return the mean seconds and processor seconds of a step of this process."""
    with ExitStack() as stack:
        stack.enter_context(case.contender.context())
        if not case.together:  # the generators of all processes stay the same
            stack.enter_context(fork_rng(next(case.stream)))
        started, used = time.perf_counter(), time.process_time()
        for _ in range(steps):
            loss = case.contender.step(next(case.stream))
        if isinstance(loss, torch.Tensor):
            loss.item()  # waits for the device
        ended, used_then = time.perf_counter(), time.process_time()
    return (ended - started) / steps, (used_then - used) / steps
