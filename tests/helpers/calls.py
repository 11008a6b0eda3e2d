"""Calls of the scripts, as their users type them."""

from __future__ import annotations

import gc
import io
import runpy
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pyro
import torch

ROOT = Path(__file__).parents[2]
DEVICE = "cpu"  # set by conftest to that of --device: auto would take a CUDA device while the test is on the host
TINY = ["--train-images", "300", "--test-images", "20", "--epochs", "3", "--num-samples", "100", "--hidden-dim", "20"]

MORE = ["--epochs", "100", "--learning-rate", "0.01"]


def command(name: str, *arguments: object) -> list[str]:
    """Return a call of a script on the device under test, unless the arguments name another one."""
    device = () if "--device" in arguments else ("--device", DEVICE)
    return [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *map(str, arguments), *device]


def script(name: str, *arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(name, *arguments), capture_output=True, text=True, cwd=cwd, check=False)


def one_line(error: BaseException) -> str:
    message = str(error)
    assert message.isprintable(), message  # no line feed among others
    return message


def inside(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script as `script` does, but in this process, an import of torch less."""
    call = command(name, *arguments)
    out, errors, before = io.StringIO(), io.StringIO(), (sys.argv, torch.get_default_dtype(), sys.path)
    sys.argv = call[1:]
    sys.path = [str(ROOT / "scripts"), *sys.path]  # where a script finds its neighbors
    torch.set_default_dtype(torch.float32)
    pyro.clear_param_store()
    gc.collect()  # a folder of an earlier run in this process, which would still be locked
    status: object = 0
    try:
        with redirect_stdout(out), redirect_stderr(errors):
            runpy.run_path(call[1], run_name="__main__")
    except SystemExit as end:
        status = end.code
    finally:
        sys.argv, sys.path = before[0], before[2]
        torch.set_default_dtype(before[1])
    return subprocess.CompletedProcess(call, int(str(status or 0)), out.getvalue(), errors.getvalue())


class Inside:
    """In the place of `subprocess.Popen` in scripts that start others, which then run in this process."""

    def __init__(self, call: list[str], **kwargs: object) -> None:
        self.status = inside(Path(call[1]).stem, *call[2:]).returncode

    def __enter__(self) -> Inside:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def wait(self) -> int:
        return self.status


def hearing(call: list[str]) -> list[str]:
    """Return a call that hears SIGINT, which what is started from a test run in the background would not."""
    code = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    return [sys.executable, "-c", code, *call]
