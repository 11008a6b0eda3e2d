r"""Work that is divided among the processes of a group (`ranks`): in parts, on the first process only, or in turn.

Without a group, every function here calls its function directly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from pyro_vae import ranks, torchrun
from pyro_vae.errors import RanksError, rebuildable

Part = TypeVar("Part")
T = TypeVar("T")


def map_parts(function: Callable[[Part], T], parts: Iterable[Part]) -> Iterator[T]:
    """Apply a function to parts of a computation, part i on rank i mod size, and yield all results in order.

    The results are the same on every process, which must call this with the same function and parts, and take all
    results or none. An exception of one part is raised on all processes. In one process, this is `map`. The function
    must not use other processes itself.

    Args:
        function: Function of one part, whose result can be pickled.
        parts: The parts; one for each process is taken at a time.

    Raises:
        RanksError: If a process has ended, or the processes apply different functions.
    """
    if ranks.size() == 1:
        yield from map(function, parts)
        return
    remaining, taken = iter(parts), 0
    while group := list(islice(remaining, ranks.size())):
        own = _attempt(function, group[ranks.rank()]) if ranks.rank() < len(group) else _Outcome()
        # Processes that have diverged would otherwise take each other's results for their own.
        step = f"{_name(function)}, part {taken}"
        found = ranks.gather((step, own._replace(error=own.error and rebuildable(own.error))))
        if len({each for each, _ in found}) > 1:
            raise _by_all(RanksError(f"The processes have diverged: {', '.join(each for each, _ in found)}."))
        for index, (_, outcome) in enumerate(found):
            if outcome.error is not None:  # the original keeps its traceback
                raise _by_all((own.error if index == ranks.rank() else None) or outcome.error)
        yield from (outcome.value for _, outcome in found[: len(group)])
        taken += len(group)


def on_first(function: Callable[[], T]) -> T:
    """Call a function on rank 0 only, and return its result, or raise its exception, on every process."""
    return next(map_parts(lambda _: function(), [None]))


def in_turn(function: Callable[[], T]) -> T:
    """Call a function on every process, first on one of each machine, e.g. to download files once for all.

    Returns:
        The result of this process. An exception of one process is raised on all of them.
    """
    leads = torchrun.local_rank() == 0
    results: list[T] = []

    def call(turn: bool) -> None:
        if leads is turn:
            results.append(function())

    for turn in (True, False):
        list(map_parts(call, [turn] * ranks.size()))
    return results[0]


class _Outcome(NamedTuple):
    """The result of a part, or the exception that it raised; neither for a process without a part."""

    value: Any = None
    error: Exception | None = None


def _name(function: Any) -> str:
    function = getattr(function, "func", function)  # of a partial
    return str(getattr(function, "__qualname__", type(function).__name__))


def _by_all(error: Exception) -> Exception:
    """Mark an exception that all processes raise, see `torchrun.seconds_to_print`."""
    error.raised_by_all = True  # type: ignore[attr-defined]
    return error


def _attempt(function: Callable[[Part], Any], part: Part) -> _Outcome:
    try:
        return _Outcome(function(part))
    except Exception as error:  # noqa: BLE001 -- raised again on all processes
        return _Outcome(error=error)
