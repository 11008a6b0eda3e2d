r"""What every script shares: one line per error, signals, and the exit status of the contract."""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from pyro_vae.errors import CheckpointError, NonFiniteError, OutOfMemoryError, UserError, is_out_of_memory
from pyro_vae.text import printable

# A signal that comes so long after the first is from somebody who does not want to wait for the step.
_FORCE_AFTER_SECONDS = 3.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def exit_status() -> Iterator[None]:
    """Turn what ends a script into its exit status, with one line on stderr.

    0 done; 1 training that stopped being finite, memory or disk that has run out; 2 bad usage or bad input; 130 and
    143 stopped by SIGINT or SIGTERM, to be continued with --resume.
    """
    # Warnings of every library, and what this one has to say besides: others say a good deal when they are imported.
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("pyro_vae").setLevel(logging.INFO)
    handler = signal.getsignal(signal.SIGTERM)
    if handler is not signal.SIG_IGN:
        signal.signal(signal.SIGTERM, _leave_at_once)
    try:
        yield
    except KeyboardInterrupt:
        _leave_at_once(signal.SIGINT, None)
    except (NonFiniteError, OutOfMemoryError) as error:
        _leave(1, " ".join([str(error), *getattr(error, "__notes__", [])]))
    except MemoryError as error:
        _leave(1, f"memory has run out ({error})")
    except (UserError, CheckpointError) as error:
        _leave(2, str(error))
    except OSError as error:
        _leave(1, str(error))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        _leave(1, f"memory has run out ({next(iter(str(error).splitlines()))})")
    finally:
        if signal.getsignal(signal.SIGTERM) is _leave_at_once:
            signal.signal(signal.SIGTERM, handler)


@contextmanager
def deferred_signals() -> Iterator[Callable[[], bool]]:
    """Let SIGINT and SIGTERM wait: yield a function that says whether one has come, and leave at the end if so."""
    arrived: list[tuple[int, float]] = []

    def note(number: int, frame: FrameType | None) -> None:
        arrived.append((number, time.monotonic()))
        if arrived[-1][1] - arrived[0][1] > _FORCE_AFTER_SECONDS:
            _leave_at_once(number, frame)

    # What is ignored stays so: a shell has put the process into the background.
    heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    handlers = {number: signal.signal(number, note) for number in heard}
    try:
        yield lambda: bool(arrived)
    finally:
        for number, handler in handlers.items() if not arrived else ():
            signal.signal(number, handler)
    if arrived:
        _leave_at_once(arrived[0][0], None)


def _leave_at_once(number: int, frame: FrameType | None) -> None:
    for other in _SIGNALS:  # another one must not change the status of a process that is ending
        signal.signal(other, signal.SIG_IGN)
    _leave(128 + number, "stopped; continue with --resume")


def _leave(status: int, message: str) -> None:
    # A message may name a file, and a file may have any name.
    print(printable(f"error: {' '.join(message.split())}" if status < 100 else message), file=sys.stderr)
    raise SystemExit(status)
