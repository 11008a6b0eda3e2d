"""Scripts killed for real: however often, the run ends with the bits of one that was left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.bits import assert_same, untimed
from helpers.calls import command, hearing, inside

from pyro_vae.runs import Checkpoints, RunFolder

pytestmark = pytest.mark.host

STEPS_OF_AN_EPOCH = 3
FLAGS = ["--train-images", "300", "--test-images", "20", "--num-samples", "50", "--hidden-dim", "20", "--prior", "vamp"]


def start(epochs: int, folder: Path, life: int, *flags: object) -> subprocess.Popen[str]:
    """Start a fit in a process of its own, with its own seed of Python's hashes."""
    call = hearing(command("fit", *FLAGS, "--epochs", epochs, "--out", folder, "--resume", *flags))
    environment = {**os.environ, "PYTHONHASHSEED": str(life)}
    return subprocess.Popen(
        call,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def result(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]:
    """Return the state at the end, the epochs and the summary, without what a clock has measured."""
    run = RunFolder(folder)
    step, state = Checkpoints(run.checkpoints, run.config()).newest()
    assert step == state["svi"]["steps"] == max(Checkpoints(run.checkpoints, run.config()).paths())
    lines = [{**line, "seconds": 0.0} for line in run.metrics()]
    summary = json.loads((folder / "summary.json").read_text())
    return untimed(state), lines, {key: value for key, value in summary.items() if not key.endswith("_seconds")}


def newest(folder: Path) -> int:
    return max(Checkpoints(folder / "checkpoints", {}).paths(), default=0)


def interrupted(epochs: int, folder: Path, signals: list[int], *flags: object) -> None:
    """Run to the end through signals, each at a random moment after the process has begun to train."""
    moments = random.Random(0)
    for life, number in enumerate(signals):
        begun = newest(folder)
        process = start(epochs, folder, life, *flags)
        deadline = time.monotonic() + 120
        # One in five comes at any time at all, while the process is starting for the most part.
        while newest(folder) == begun and process.poll() is None and life % 5 != 4:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(moments.uniform(0.0, 0.5 if life % 5 != 4 else 6.0))
        process.send_signal(number)
        if number != signal.SIGKILL:
            time.sleep(moments.uniform(0.0, 0.2))
            process.send_signal(number)  # twice in a row
        _, errors = process.communicate(timeout=120)
        ended = -number if number == signal.SIGKILL else 128 + number
        # A shell calls both 128 + number; while the script's imports run, nobody but Python hears a signal.
        assert process.returncode in ({-number, 128 + number} if newest(folder) == begun else {ended}), errors
        if number != signal.SIGKILL and newest(folder) > begun:
            assert errors == "stopped; continue with --resume\n"
            assert newest(folder) >= STEPS_OF_AN_EPOCH * len(RunFolder(folder).metrics())  # none is ahead of it
    process = start(epochs, folder, 1 + len(signals), *flags)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def check(epochs: int, folder: Path, signals: list[int], *flags: object) -> None:
    interrupted(epochs, folder / "run", signals, *flags)
    alone = inside("fit", *FLAGS, "--epochs", epochs, "--out", folder / "alone", *flags)
    assert alone.returncode == 0, alone.stderr
    found, expected = result(folder / "run"), result(folder / "alone")
    assert_same(*(state for state, _, _ in (found, expected)))
    assert found[1:] == expected[1:]
    assert [line["epoch"] for line in found[1]] == list(range(epochs))


@pytest.mark.parametrize(
    ("kills", "epochs"), [pytest.param(1, 40, marks=pytest.mark.slow), pytest.param(25, 1200, marks=pytest.mark.slow)]
)
def test_a_run_that_is_killed_ends_with_the_same_bits(
    kills: int, epochs: int, tmp_path: Path, promised: Callable[[str], None]
) -> None:
    check(epochs, tmp_path, [signal.SIGKILL] * kills, "--checkpoint-seconds", 0)
    promised(f"a run killed {kills} x by SIGKILL: the same bits at the end, and each epoch once")


@pytest.mark.slow
def test_a_run_that_is_stopped_by_signals_ends_with_the_same_bits(
    tmp_path: Path, promised: Callable[[str], None]
) -> None:
    """Without checkpoints by the clock: those that are there, but for the milestones, are of the signals."""
    check(1200, tmp_path, [signal.SIGINT, signal.SIGTERM] * 5, "--checkpoint-seconds", 3600)
    promised("a run stopped 10 times by SIGINT and SIGTERM, each sent twice: exit 130 or 143, the same bits at the end")
