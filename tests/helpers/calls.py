"""Calls of the scripts as typed by their users."""

from __future__ import annotations

import gc
import io
import runpy
import subprocess
import sys
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import pyro
import torch
from matplotlib.figure import Figure
from PIL import Image

ROOT = Path(__file__).parents[2]
DEVICE = "cpu"  # set by conftest.py from --device: auto would select a CUDA device for tests on the host
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
    assert message.isprintable(), message  # no line breaks
    return message


def save_blank(figure: Figure, path: Path, **options: object) -> None:
    """Write one pixel instead of a figure, whose layout takes longer than everything else that a tiny fit does."""
    Image.new("RGB", (1, 1)).save(path, format="PNG")


def inside(name: str, *arguments: object, render: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a script like `script`, but in this process, which saves an import of torch.

    Args:
        name: Name of the script.
        *arguments: Its arguments.
        render: Whether its figures are rendered. Otherwise they are made, and saved as one pixel.
    """
    call = command(name, *arguments)
    out, errors, before = io.StringIO(), io.StringIO(), (sys.argv, torch.get_default_dtype(), sys.path)
    sys.argv = call[1:]
    sys.path = [str(ROOT / "scripts"), *sys.path]  # where a script finds its neighbors
    torch.set_default_dtype(torch.float32)
    pyro.clear_param_store()
    gc.collect()  # releases the lock of run folders from earlier calls in this process
    gc.freeze()  # what stays alive, mostly modules, is not traversed again by the next call
    status: object = 0
    try:
        figures = nullcontext() if render else mock.patch.object(Figure, "savefig", save_blank)
        with redirect_stdout(out), redirect_stderr(errors), figures:
            runpy.run_path(call[1], run_name="__main__")
    except SystemExit as end:
        status = end.code
    finally:
        sys.argv, sys.path = before[0], before[2]
        torch.set_default_dtype(before[1])
    return subprocess.CompletedProcess(call, int(str(status or 0)), out.getvalue(), errors.getvalue())


class PopenInProcess:
    """A replacement of `subprocess.Popen` for scripts that start other scripts, which runs them in this process."""

    def __init__(self, call: list[str], **kwargs: object) -> None:
        self.status = inside(Path(call[1]).stem, *call[2:]).returncode

    def __enter__(self) -> PopenInProcess:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def wait(self) -> int:
        return self.status


def with_default_sigint(call: list[str]) -> list[str]:
    """Return a call with the default SIGINT handler, which processes started by a background job would ignore."""
    code = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    return [sys.executable, "-c", code, *call]
