r"""The environment in which torchrun starts processes, and what scripts derive from it before they join a group."""

from __future__ import annotations

import os
import signal
import sys
import time

import torch

from pyro_vae.errors import RanksError, UserError

_NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_OTHERS = ("LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_NAME", "ROLE_RANK", "ROLE_WORLD_SIZE")
_PREFIXES = ("TORCHELASTIC_", "TORCH_NCCL_")
# How long a process waits at most for the first one to report an error, if that one computes, and if it still starts.
_SECONDS_TO_STOP, _SECONDS_TO_START = 2.0, 30.0


def launched() -> bool:
    """Return whether torchrun has started this process as one of several."""
    return all(name in os.environ for name in _NEEDED) and os.environ["WORLD_SIZE"] != "1"


def restarts() -> bool:
    """Return whether torchrun starts the processes again after one of them has ended: --max-restarts."""
    return launched() and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"


def attempt() -> int:
    """Return how often torchrun has started the processes again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def wait_to_be_stopped(status: int, seconds: float | None) -> None:
    """Wait for torchrun to stop this process, which then exits with `status`; None waits for a short time."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(status))
    time.sleep(_SECONDS_TO_STOP if seconds is None else seconds)


def local_rank() -> int:
    """Return the number of this process among those of its machine, from 0."""
    return int(os.environ["LOCAL_RANK"]) if launched() else 0


def refuse(script: str) -> None:
    """Raise UserError if torchrun has started this process as one of several."""
    if launched():
        raise UserError(f"{script} under torchrun is not supported; start it with python.")


def prints() -> bool:
    """Return whether this process prints its output. Of several processes, the first one does."""
    return not launched() or os.environ["RANK"] == "0"


def seconds_to_print(error: Exception) -> float | None:
    """Return the time until this process prints an error, or None if another one prints it.

    When a process ends, torchrun stops the others. A process that may have the same error as the first one waits for
    that: for errors before the group is joined, which come from flags and files, and for lost connections. A lost
    connection is not printed if another process has printed the cause to the output of torchrun.
    """
    raised_by_all = getattr(error, "raised_by_all", None)  # set by `failures` and `parallel.map_parts`
    spoken = getattr(error, "spoken", not prints())  # set by `failures` for lost connections
    if (raised_by_all and not prints()) or (hasattr(error, "spoken") and spoken and _one_output()):
        return None
    if not spoken or (raised_by_all is False and not isinstance(error, RanksError)):
        return 0.0
    return _SECONDS_TO_STOP if isinstance(error, RanksError) else _SECONDS_TO_START


def _one_output() -> bool:
    """Return whether the output of all processes arrives in one place; other launchers may separate it."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def single_process_environment() -> dict[str, str]:
    """Return an environment for a process that this one starts and that works alone.

    It has none of the variables of torchrun. Of several processes on a machine, each passes on its share of the
    processor cores, unless more than one thread is requested by OMP_NUM_THREADS, and its own GPU.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in _NEEDED + _OTHERS and not name.startswith(_PREFIXES)
    }
    if launched():
        # torchrun sets one thread if the variable is not set.
        if environment.get("OMP_NUM_THREADS", "1") == "1":
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            environment["OMP_NUM_THREADS"] = str(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
        if gpus := torch.cuda.device_count():
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
            environment["CUDA_VISIBLE_DEVICES"] = visible[local_rank() % gpus]
    return environment
