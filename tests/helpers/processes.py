"""Processes that work as one, started with the variables that torchrun sets."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from helpers.calls import ROOT


def run_together(size: int, program: str, *arguments: object) -> list[subprocess.CompletedProcess[str]]:
    """Run a file of helpers in several processes of one thread, and return their results by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    group = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name(program)), *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "RANK": r, "LOCAL_RANK": r, **group},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in map(str, range(size))
    ]
    try:
        outputs = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *output)
        for process, output in zip(started, outputs, strict=True)
    ]


def torchrun(size: int, *call: object, restarts: int = 0) -> list[str]:
    """Return the command that starts a script, given by its path and arguments, in several processes."""
    options = ["--standalone", "--nproc-per-node", str(size), "--max-restarts", str(restarts)]
    return [sys.executable, "-m", "torch.distributed.run", *options, *map(str, call)]


def run_torchrun(size: int, *call: object, restarts: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a script in several processes; a hang fails."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        torchrun(size, *call, restarts=restarts),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            output = process.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun then stops its processes
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, *output)


def own_lines(stderr: str) -> list[str]:
    """Return the lines that scripts print when they end early, without the report of torchrun."""
    return [line for line in stderr.splitlines() if line.startswith(("error: ", "stopped; "))]
