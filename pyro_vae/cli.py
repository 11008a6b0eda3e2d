r"""Shared by all scripts: one-line error messages, signal handling and exit codes."""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from pyro_vae.errors import (
    CheckpointError,
    NonFiniteError,
    OutOfMemoryError,
    UserError,
    is_device_failure,
    is_out_of_memory,
)
from pyro_vae.text import printable

# A signal received this long after the first one ends the process at once, without waiting for the training step.
_FORCE_AFTER_SECONDS = 3.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def exit_status() -> Iterator[None]:
    """Map exceptions to exit codes, and print a one-line message to stderr.

    0: success. 1: training diverged (non-finite loss or gradient), memory ran out, a device failed, or the operating
    system reported an error, e.g. a full disk. 2: invalid usage or input. 130, 143: stopped by SIGINT, SIGTERM;
    --resume continues.
    """
    # Warnings of all libraries, but INFO messages of pyro_vae only: other libraries log many of them on import.
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("pyro_vae").setLevel(logging.INFO)
    handler = signal.getsignal(signal.SIGTERM)
    if handler is not signal.SIG_IGN:
        signal.signal(signal.SIGTERM, _exit_on_signal)
    try:
        yield
    except KeyboardInterrupt:
        _exit_on_signal(signal.SIGINT, None)
    except (NonFiniteError, OutOfMemoryError) as error:
        _exit(1, " ".join([str(error), *getattr(error, "__notes__", [])]))
    except MemoryError as error:
        _exit(1, f"out of memory ({error})")
    except (UserError, CheckpointError) as error:
        _exit(2, str(error))
    except OSError as error:
        _exit(1, str(error))
    except RuntimeError as error:
        line = next(iter(str(error).splitlines()), "")
        if is_out_of_memory(error):
            advice = (
                "" if "CPU" in line else "; nvidia-smi lists the processes that use the device, or use --device cpu"
            )
            _exit(1, f"out of memory ({line}){advice}")
        if not is_device_failure(error):
            raise
        _exit(
            1, f"the device failed ({line}); check it with nvidia-smi and continue with --resume, or use --device cpu"
        )
    finally:
        if signal.getsignal(signal.SIGTERM) is _exit_on_signal:
            signal.signal(signal.SIGTERM, handler)


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
    for further_signal in _SIGNALS:  # a further signal must not change the exit code
        signal.signal(further_signal, signal.SIG_IGN)
    _exit(128 + signum, "stopped; continue with --resume")


def _exit(status: int, message: str) -> None:
    # Messages may contain file names, which may contain any character.
    print(printable(f"error: {' '.join(message.split())}" if status < 100 else message), file=sys.stderr)
    raise SystemExit(status)
