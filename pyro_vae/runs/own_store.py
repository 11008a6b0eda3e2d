r"""Programs with separate Pyro param stores.

Pyro looks up parameters by name in one store per process. If two programs use the same names, the second one to run
would silently use the parameters of the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial, update_wrapper
from typing import Any

import pyro

from pyro_vae.trace import Program

Store = Any
"""State of a param store, {"params": {name: tensor}, "constraints": {name: constraint}}; Pyro exports no type."""


class IsolatedProgram:
    """A program whose ``model`` and ``guide`` use a separate param store. Other attributes are those of the program.

    Args:
        program: Object with ``model`` and ``guide``.
        store: Parameters of the program, as yielded by `pyro.params.param_store.ParamStoreDict.scope`.
    """

    def __init__(self, program: Any, store: Store) -> None:
        self._program = program
        self._store = store
        # Wrap once, not at each access: compiled graphs and checks are cached by the identity of the callables.
        self.model: Program = update_wrapper(partial(_call, store, program.model), program.model)
        self.guide: Program = update_wrapper(partial(_call, store, program.guide), program.guide)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_program"], name)

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Make the store of the program Pyro's global store, e.g. for many calls or to continue training."""
        with pyro.get_param_store().scope(self._store):
            yield


def _call(store: Store, program: Program, *args: Any, **kwargs: Any) -> Any:
    current: Any = pyro.get_param_store()
    params = store["params"]
    # Inside `scope`, and in read-only copies of that store, the global store already holds these tensors.
    if all(current._params.get(name) is tensor for name, tensor in params.items()):
        return program(*args, **kwargs)
    with current.scope(store):
        return program(*args, **kwargs)
