r"""A param store of one fit, apart from the global one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro


class IsolatedStore:
    """The parameters of one fit; empty at first."""

    def __init__(self) -> None:
        self._state: Any = {"params": {}, "constraints": {}}

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Replace the contents of the global param store by those of this one."""
        store = pyro.get_param_store()
        with store.scope(self._state):
            try:
                yield
            finally:
                self._state.update(store.get_state())

    def publish(self) -> None:
        """Add the parameters to the global store."""
        store = pyro.get_param_store()
        merged: Any = {part: values | self._state[part] for part, values in store.get_state().items()}
        store.set_state(merged)
