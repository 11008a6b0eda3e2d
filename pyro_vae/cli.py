r"""Shared by all scripts: one-line error messages, signal handling and exit codes."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from types import FrameType

from pyro_vae import output, ranks, torchrun
from pyro_vae.errors import (
    CheckpointError,
    FigureError,
    NonFiniteError,
    OutOfMemoryError,
    RanksError,
    UserError,
    is_device_failure,
    is_out_of_memory,
    place_in_program,
    with_notes,
)
from pyro_vae.text import printable

# A signal received this long after the first one ends the process at once, without waiting for the training step.
_FORCE_AFTER_SECONDS = 3.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
UNDRAWN = 3
"""Exit status if all numbers are written, but figures could not be drawn."""
# Environment variable of a script that another script has started, and whose standard input stays open until that ends.
_PARENT = "PYRO_VAE_STOPS_WITH_STDIN"

_continues = ""  # of the script that runs, see `exit_status`


@contextmanager
def exit_status(continues: str = "") -> Iterator[None]:
    """Map exceptions to exit codes, and print a one-line message to stderr.

    0: success. 1: training diverged (non-finite loss or gradient), memory ran out, a device failed, another process of
    the group ended, or the operating system reported an error, e.g. a full disk. 2: invalid usage or input. 3: all
    numbers are written, but figures could not be drawn. 130, 143: stopped by SIGINT, SIGTERM.

    Of several processes, the first one prints. The others print only errors, and only those that the first may not
    have.

    Args:
        continues: How a stopped call is continued, for the message. If empty, it has to start again.
    """
    global _continues
    _continues = continues
    output.open_standard_streams()
    # Warnings of all libraries, but INFO messages of pyro_vae only: other libraries log many of them on import.
    logging.basicConfig(level=logging.WARNING, handlers=[output.log_handler()])
    logging.getLogger("pyro_vae").setLevel(logging.INFO)
    if _PARENT in os.environ:
        _stop_with_parent()
    handler = signal.getsignal(signal.SIGTERM)
    if handler is not signal.SIG_IGN:
        signal.signal(signal.SIGTERM, _exit_on_signal)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # set by the scripts during their imports
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with nullcontext() if torchrun.prints() else _quiet():
            yield
    except KeyboardInterrupt:
        _exit_on_signal(signal.SIGINT, None)
    except Exception as error:
        mapped = _status_and_message(error)
        seconds = torchrun.seconds_to_print(error)
        if seconds != 0.0:
            torchrun.wait_to_be_stopped(mapped[0] if mapped else 1, seconds)
        if mapped is None and seconds is not None:
            raise
        if torchrun.launched():  # it stops this process if another one has ended: that would be a second line
            _ignore_signals()
        _exit(*(mapped or (1, "")), show=seconds is not None)
    finally:
        if signal.getsignal(signal.SIGTERM) is _exit_on_signal:
            signal.signal(signal.SIGTERM, handler)


def environment_of_child(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a script that stops as by SIGTERM when its standard input, a pipe, is closed.

    That happens however this process ends, even by SIGKILL, so that it leaves no process behind.
    """
    return {**environment, _PARENT: "1"}


def _stop_with_parent() -> None:
    def wait() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def _status_and_message(error: Exception) -> tuple[int, str] | None:
    """Return the exit status and the message of an expected error, or None for a bug in the program."""
    place = place_in_program(error)
    match error:
        case NonFiniteError() | OutOfMemoryError():
            return 1, with_notes(error)
        case MemoryError():
            return 1, f"out of memory ({error}){place}"
        case UserError() | CheckpointError():
            return 2, f"{error}{place}"
        case FigureError():
            return UNDRAWN, str(error)
        case OSError() | RanksError():
            return 1, f"{error}{place}"
    line = next(iter(str(error).splitlines()), "")
    if isinstance(error, RuntimeError) and is_out_of_memory(error):
        advice = "" if "CPU" in line else "; nvidia-smi lists the processes that use the device, or use --device cpu"
        return 1, f"out of memory ({line}){place}{advice}"
    if isinstance(error, RuntimeError) and is_device_failure(error):
        again = f" and {_continues}" if _continues else ""
        advice = f"check it with nvidia-smi{again}, or use --device cpu"
        return 1, f"the device failed ({line}); {advice}"
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Print nothing but errors."""
    logging.getLogger().setLevel(logging.ERROR)
    logging.getLogger("pyro_vae").setLevel(logging.ERROR)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def deferred_signals() -> Iterator[Callable[[], bool]]:
    """Defer SIGINT and SIGTERM to the end of the block.

    Yields a function that returns whether a signal has been received. If so, the process exits when the block ends. A
    repeated signal more than three seconds after the first ends the process at once.
    """
    received: list[tuple[int, float]] = []

    def record(signum: int, frame: FrameType | None) -> None:
        received.append((signum, time.monotonic()))
        if received[-1][1] - received[0][1] > _FORCE_AFTER_SECONDS:
            _exit_on_signal(signum, frame)

    # Keep ignored signals ignored: shells ignore SIGINT for background jobs.
    deferred = [signum for signum in _SIGNALS if signal.getsignal(signum) is not signal.SIG_IGN]
    handlers = {signum: signal.signal(signum, record) for signum in deferred}
    try:
        yield lambda: bool(received)
    finally:
        for signum, handler in handlers.items() if not received else ():
            signal.signal(signum, handler)
    if received:
        _exit_on_signal(received[0][0], None)


def _exit_on_signal(signum: int, frame: FrameType | None) -> None:
    _ignore_signals()  # a further signal must not change the exit code
    message = f"stopped; {_continues}" if _continues else "stopped"
    _exit(128 + signum, message, show=torchrun.prints() and ranks.claims_to_speak())


def _ignore_signals() -> None:
    for signum in _SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


def _exit(status: int, message: str, *, show: bool) -> None:
    if show:  # messages may contain file names, which may contain any character
        with suppress(OSError):  # nobody reads it
            print(printable(f"error: {' '.join(message.split())}" if status < 100 else message), file=sys.stderr)
    raise SystemExit(status)
