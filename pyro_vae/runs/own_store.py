r"""A program whose parameters live in a Pyro param store of its own.

Pyro finds parameters by name in one store for the whole process. Of two programs of the same names, the one that runs
second would be given the values of the first, in silence.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial, update_wrapper
from typing import Any

import pyro

from pyro_vae.trace import Program

Store = Any
"""The state of a param store, {"params": tensors by name, "constraints": by name}; Pyro does not export its type."""


class IsolatedProgram:
    """A program, with all its attributes, whose ``model`` and ``guide`` find their parameters in a store of their own.

    Args:
        program: an object with ``model`` and ``guide``.
        store: its parameters, as `pyro.params.param_store.ParamStoreDict.scope` yields them.
    """

    def __init__(self, program: Any, store: Store) -> None:
        self._program = program
        self._store = store
        # Kept, not made anew at each use: what is known of a program is known by its identity.
        self.model: Program = update_wrapper(partial(_call, store, program.model), program.model)
        self.guide: Program = update_wrapper(partial(_call, store, program.guide), program.guide)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_program"], name)

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Make the store of the program the store of Pyro, for many calls or to go on training."""
        with pyro.get_param_store().scope(self._store):
            yield


def _call(store: Store, program: Program, *args: Any, **kwargs: Any) -> Any:
    current: Any = pyro.get_param_store()
    own = store["params"]
    # In `scope`, and in the copies of it that are read, the tensors are its own: nothing has to change.
    if all(current._params.get(name) is tensor for name, tensor in own.items()):
        return program(*args, **kwargs)
    with current.scope(store):
        return program(*args, **kwargs)
