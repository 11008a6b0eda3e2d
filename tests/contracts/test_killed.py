"""Scripts ended by signals: the resumed run ends bit-identical to an uninterrupted one, however often it was ended."""

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
from helpers.calls import command, inside, with_default_sigint

from pyro_vae.runs import Checkpoints, RunFolder

pytestmark = pytest.mark.host

STEPS_OF_AN_EPOCH = 3
FLAGS = ["--train-images", "300", "--test-images", "20", "--num-samples", "50", "--hidden-dim", "20", "--prior", "vamp"]


def start(epochs: int, folder: Path, life: int, *flags: object) -> subprocess.Popen[str]:
    """Start a fit in a separate process with its own PYTHONHASHSEED."""
    call = with_default_sigint(command("fit", *FLAGS, "--epochs", epochs, "--out", folder, "--resume", *flags))
    environment = {**os.environ, "PYTHONHASHSEED": str(life)}
    return subprocess.Popen(
        call,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def result(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]:
    """Return the final state, the epochs and the summary, without measured times."""
    run = RunFolder(folder)
    step, state = Checkpoints(run.checkpoints, run.config()).newest()
    assert step == state["svi"]["steps"] == max(Checkpoints(run.checkpoints, run.config()).paths())
    lines = [{**line, "seconds": 0.0} for line in run.metrics()]
    summary = json.loads((folder / "summary.json").read_text())
    return untimed(state), lines, {key: value for key, value in summary.items() if not key.endswith("_seconds")}


def newest(folder: Path) -> int:
    return max(Checkpoints(folder / "checkpoints", {}).paths(), default=0)


def interrupted(epochs: int, folder: Path, signals: list[int], *flags: object) -> None:
    """Run to the end through signals, each sent at a random moment after training has begun."""
    moments = random.Random(0)
    for life, number in enumerate(signals):
        begun = newest(folder)
        process = start(epochs, folder, life, *flags)
        deadline = time.monotonic() + 120
        # One signal in five comes at any time, mostly while the process is still importing.
        while newest(folder) == begun and process.poll() is None and life % 5 != 4:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(moments.uniform(0.0, 0.5 if life % 5 != 4 else 6.0))
        process.send_signal(number)
        if number != signal.SIGKILL:
            time.sleep(moments.uniform(0.0, 0.2))
            process.send_signal(number)  # two signals in quick succession
        _, errors = process.communicate(timeout=120)
        ended = -number if number == signal.SIGKILL else 128 + number
        # A shell reports both as 128 + number. During the imports of the script only Python's handler is installed.
        assert process.returncode in ({-number, 128 + number} if newest(folder) == begun else {ended}), errors
        if number != signal.SIGKILL and newest(folder) > begun:
            assert errors == "stopped; continue with --resume\n"
            assert newest(folder) >= STEPS_OF_AN_EPOCH * len(RunFolder(folder).metrics())  # never behind the epochs
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


@pytest.mark.slow
def test_killed_run_ends_bit_identical(tmp_path: Path, promised: Callable[[str], None]) -> None:
    check(1200, tmp_path, [signal.SIGKILL] * 25, "--checkpoint-seconds", 0)
    promised("a run killed 25 x by SIGKILL and resumed ends bit-identical, with each epoch once")


@pytest.mark.slow
def test_run_stopped_by_signals_ends_bit_identical(tmp_path: Path, promised: Callable[[str], None]) -> None:
    """Periodic checkpoints are off: except for milestones, every checkpoint was written because of a signal."""
    check(1200, tmp_path, [signal.SIGINT, signal.SIGTERM] * 5, "--checkpoint-seconds", 3600)
    promised("a run stopped 10 x by SIGINT and SIGTERM, each sent twice: exit status 130 or 143, ends bit-identical")
