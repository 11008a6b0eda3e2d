"""compare.py ended at any moment and in any way leaves no process behind, and continues to the same rows."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.calls import command, with_default_sigint

from pyro_vae import cli

pytestmark = pytest.mark.host

SMALL = ["--train-images", "300", "--test-images", "20", "--num-samples", "20", "--hidden-dim", "20", "--epochs", "300"]
WAITS = f"""
import os, signal, sys, time
sys.path[:0] = {sys.path!r}
from pyro_vae import cli
with cli.exit_status():
    print("ready", flush=True)
    time.sleep(100)
"""


def test_script_stops_when_the_one_that_started_it_has_ended() -> None:
    """However that was ended, its end of the pipe is closed; here a process holds that end until it is killed."""
    environment = cli.environment_of_child(os.environ)
    reader, writer = os.pipe()
    holder = subprocess.Popen(["sleep", "100"], stdout=writer)
    os.close(writer)
    child = subprocess.Popen(
        [sys.executable, "-c", WAITS], stdin=reader, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    os.close(reader)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        assert child.poll() is None
        holder.kill()
        holder.wait()
        _, errors = child.communicate(timeout=60)
    finally:
        holder.kill()
        child.kill()
        holder.wait()
    assert child.returncode == 128 + signal.SIGTERM
    assert errors == b"stopped\n"


def fits_in(folder: Path) -> list[int]:
    """Return the processes of fit.py that write below a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if any(word.endswith("fit.py") for word in words) and any(word.startswith(f"{folder}/") for word in words):
            found.append(int(path.parent.name))
    return found


def rows(folder: Path) -> list[dict[str, Any]]:
    found = json.loads((folder / "comparison.json").read_text())
    return [{key: value for key, value in row.items() if key != "seconds_per_epoch"} for row in found]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="processes are found in /proc")
def test_killed_comparison_leaves_no_process_and_continues(tmp_path: Path) -> None:
    flags = ["--priors", "standard", "laplace", *SMALL]
    whole = subprocess.run(command("compare", *flags, "--out", tmp_path / "whole"), check=False, capture_output=True)
    assert whole.returncode == 0, whole.stderr
    moments, out = random.Random(0), tmp_path / "out"
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT) * 2:
        process = subprocess.Popen(
            with_default_sigint(command("compare", *flags, "--out", out)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        time.sleep(moments.uniform(3.0, 20.0))
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
        assert process.returncode in (0, -number, 128 + number), errors
        deadline = time.monotonic() + 60
        while fits_in(out):
            assert time.monotonic() < deadline, "a fit goes on"
            time.sleep(0.1)
    again = subprocess.run(command("compare", *flags, "--out", out), check=False, capture_output=True)
    assert again.returncode == 0, again.stderr
    assert rows(out) == rows(tmp_path / "whole")
