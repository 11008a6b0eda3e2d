r"""Which of several processes prints an error that ends them.

Each process that ends by an error of its own leaves a note in the store of the group before it closes its connections.
So a process that only finds its connections closed knows whether another one prints the cause, and an error that all
processes raise, e.g. one of the program, is printed by the first one only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from pyro_vae.errors import RanksError, is_out_of_memory

# How long a process waits for the error of the first one, which ends as soon as it needs this process.
_PATIENCE = timedelta(seconds=10)
_LOST = "lost"
_SPEAKERS = "pyro_vae/speakers"


@contextmanager
def lost_connections() -> Iterator[None]:
    """Raise RanksError for the error of a collective operation whose other processes have ended.

    Wrap collective operations only: gloo and NCCL raise plain RuntimeErrors.
    """
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        # Without the place in the sources of gloo, and its advice.
        reason = re.sub(r"^\[[^]]*\.cc:\d+\] ", "", str(error)).partition(". ")[0]
        raise RanksError(f"Another process has ended, or cannot be reached; see its own message ({reason}).") from error


class Notes:
    """The notes of the processes of a group.

    Args:
        store: Store of the group.
        rank: Number of this process.
        size: Number of processes.
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self._store, self._rank, self._size = store, rank, size

    def leave(self, error: Exception) -> None:
        """Leave a note of an error. Call this before the connections are closed."""
        if self._rank == 0 or not _is_lost(error):
            self._try(lambda: self._store.set(_key(self._rank), _text(error)))

    def compare(self, error: Exception) -> None:
        """Set `raised_by_all` and `spoken` of an error by the notes, see `torchrun.seconds_to_print`.

        Call this after the connections have been closed, so that the first process ends, too.
        """
        error.raised_by_all = getattr(error, "raised_by_all", False) or (  # type: ignore[attr-defined]
            self._rank > 0 and not _is_lost(error) and self._first() == _text(error)
        )
        if _is_lost(error):
            error.spoken = not self.claim()  # type: ignore[attr-defined]

    def claim(self) -> bool:
        """Return whether this process is to say why the group ends: no other one has an error of its own, or says it.

        If a process has been killed, perhaps the first one, this leaves one of the others.
        """
        if any(map(self._has_cause, set(range(self._size)) - {self._rank})):
            return False
        number = self._try(lambda: self._store.add(_SPEAKERS, 1))
        return number is None or number == 1

    def _first(self) -> str | None:
        def read() -> str:
            self._store.wait([_key(0)], _PATIENCE)
            return str(self._store.get(_key(0)).decode())

        return self._try(read)

    def _has_cause(self, rank: int) -> bool:
        key = _key(rank)
        return bool(self._try(lambda: self._store.check([key]) and self._store.get(key).decode() != _LOST))

    def _try(self, function: Any) -> Any:
        """Call a function of the store; return None if it cannot be reached: without torchrun, rank 0 serves it."""
        try:
            return function()
        except RuntimeError:
            return None


def _is_lost(error: Exception) -> bool:
    return isinstance(error, RanksError) and not getattr(error, "raised_by_all", False)


def _text(error: Exception) -> str:
    """Return the error without its numbers, e.g. that of images, which depends on the process."""
    return _LOST if _is_lost(error) else re.sub(r"\d+", "#", f"{type(error).__name__}: {error}")


def _key(rank: int) -> str:
    return f"pyro_vae/error/{rank}"
