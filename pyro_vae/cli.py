r"""What every script shares: one line per error, and the exit status of the contract."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pyro_vae.infer import NonFiniteError
from pyro_vae.infer.checkpoint import CheckpointError


@contextmanager
def exit_status() -> Iterator[None]:
    """Turn what ends a script into its exit status, with one line on stderr.

    0 done; 1 training that stopped being finite; 2 bad usage or bad input; 130 and 143 stopped by SIGINT or
    SIGTERM, to be continued with --resume.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    handler = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except KeyboardInterrupt:
        _leave(130, "stopped; continue with --resume")
    except NonFiniteError as error:
        _leave(1, str(error))
    except (ValueError, CheckpointError) as error:
        _leave(2, str(error))
    finally:
        signal.signal(signal.SIGTERM, handler)


def _terminate(number: int, frame: FrameType | None) -> None:
    _leave(128 + number, "stopped; continue with --resume")


def _leave(status: int, message: str) -> None:
    print(f"error: {' '.join(message.split())}" if status < 100 else message, file=sys.stderr)
    raise SystemExit(status)
