r"""Output of the scripts, which loses no results whatever becomes of stdout and stderr."""

from __future__ import annotations

import io
import logging
import os
import sys
from contextlib import suppress
from typing import Any, TextIO, cast

from pyro_vae.text import printable

_LOG = logging.getLogger("pyro_vae")


def show(text: str) -> None:
    """Print results, which are in files already, with all control characters but line feeds escaped.

    An output that takes no more text, e.g. a pipe whose reader has ended or a file on a full disk, ends nothing.
    """
    try:
        print("\n".join(map(printable, text.split("\n"))), flush=True)
    except OSError as error:
        _LOG.warning("The output cannot be printed (%s).", error.strerror)
        # What is left in the buffer would raise the same error when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def open_standard_streams() -> None:
    """Open those of the standard streams that are closed, and let the others take any character.

    The next file that a process opens gets the number of a closed stream, so that messages of libraries would be
    written into it, e.g. into a checkpoint. Progress bars and log messages need a stream, too.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number, which is this one
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 -- until the process ends
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if sys.stderr.isatty():
        sys.stderr = cast(TextIO, _Terminal(sys.stderr))


class _Terminal:
    """A terminal that may be closed while the process runs: what is written to it then, e.g. progress, is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def log_handler() -> logging.Handler:
    """Return a handler that writes log messages to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(message)s"))
    return handler


class _OneLine(logging.Formatter):
    """Messages of this package, which may quote files of other users, as one line of printable characters."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return printable(text) if record.name.startswith("pyro_vae") else text
