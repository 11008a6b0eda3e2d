r"""What a fit does once for all processes that share its steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias, TypeVar

from pyro_vae import parallel, ranks

Part = TypeVar("Part")
T = TypeVar("T")
MapParts: TypeAlias = Callable[[Callable[[Any], T], Iterable[Any]], Iterator[T]]


class OneProcess:
    """The process of a fit by itself."""

    leads = True
    """Whether this process writes files."""

    def __init__(self) -> None:
        self.should_stop: Callable[[], bool] = lambda: False  # whether this process has been asked to stop

    @property
    def stopping(self) -> bool:
        """Whether to stop after the last step."""
        return self.should_stop()

    def on_first(self, function: Callable[[], T]) -> T:
        """Return the result of a function that one process calls."""
        return function()

    def map_parts(self, function: Callable[[Part], T], parts: Iterable[Part]) -> Iterator[T]:
        """Return the results of a function of parts, in order."""
        return map(function, parts)


class ManyProcesses(OneProcess):
    """The processes that share the steps of a fit, see `ranks`. All of them call the same methods in the same order."""

    def __init__(self) -> None:
        super().__init__()
        self.leads = ranks.is_first()
        self.stops = False  # whether some process had been asked to stop before the last step

    @property
    def stopping(self) -> bool:
        """Whether to stop after the last step; the same in all processes."""
        return self.stops

    def on_first(self, function: Callable[[], T]) -> T:
        """Return the result of a function that the first process calls, or raise its exception, in all processes."""
        return parallel.on_first(function)

    def map_parts(self, function: Callable[[Part], T], parts: Iterable[Part]) -> Iterator[T]:
        """Return the results of a function of parts, in order, in all processes; see `parallel.map_parts`."""
        return parallel.map_parts(function, parts)
