r"""Find the modules behind a program, and run them in evaluation mode without changing their state."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.modules.module import register_module_forward_pre_hook

from pyro_vae.trace.batch import Program

_EMPTY_CELL = CellType()


def bound_instance(program: Program) -> Any:
    """Return the owner of a bound method, or the callable itself, after following `__wrapped__`."""
    inner = inspect.unwrap(program)
    return getattr(inner, "__self__", inner)


def find_modules(program: Program) -> list[nn.Module]:
    """Return the outermost modules behind a model or guide, in the order of discovery.

    The search covers the owner of a bound method and its attributes, the arguments of a `functools.partial`, and the
    closure of a function and the modules among the globals that it names.
    """
    modules: dict[int, nn.Module] = {}
    _collect(program, modules, set(), depth=4)
    inner = {id(part) for root in modules.values() for part in root.modules() if part is not root}
    return [root for key, root in modules.items() if key not in inner]


# This traversal deliberately differs from that of `graphs.slots`, which watches Python values. That one follows every
# reference, takes milliseconds, and skips library objects. This one runs at every evaluation: it follows at most four
# references, including those of library objects, and stops at modules. Its order is the order of modules in a
# checkpoint; in the order of the other traversal, checkpoints of several modules would no longer load.
def _collect(obj: Any, modules: dict[int, nn.Module], visited: set[int], depth: int) -> None:
    if id(obj) in visited or depth < 0:
        return
    visited.add(id(obj))
    children: Iterable[Any] = ()
    if isinstance(obj, nn.Module):
        modules[id(obj)] = obj
    elif isinstance(obj, partial):
        children = (obj.func, *obj.args, *obj.keywords.values())
    elif isinstance(obj, MethodType):
        children = (obj.__self__, obj.__func__)
    elif isinstance(obj, FunctionType):
        cells = (cell.cell_contents for cell in obj.__closure__ or () if cell != _EMPTY_CELL)
        named = (obj.__globals__.get(name) for name in obj.__code__.co_names)
        children = (*cells, *(value for value in named if isinstance(value, nn.Module)))
    elif isinstance(obj, Mapping):
        children = obj.values()
    elif isinstance(obj, (list, tuple)):
        children = obj
    elif not isinstance(obj, (type, ModuleType, Tensor)):
        children = getattr(obj, "__dict__", {}).values()
    for part in children:
        _collect(part, modules, visited, depth - 1)


class ModuleRecorder:
    """Record the modules that run inside the context, in the order of their first calls.

    A traversal of references misses modules behind two handlers, in a global dictionary or in a helper function. A
    global forward hook finds them all.

    Args:
        on_first: Function called with each module before it runs for the first time.
    """

    def __init__(self, on_first: Callable[[nn.Module], None] | None = None) -> None:
        self.on_first = on_first
        self.found: dict[nn.Module, None] = {}

    def __enter__(self) -> ModuleRecorder:
        # Keep the hook out of modules that torch compiles. A decorator would do the same but import the compiler along
        # with this file, which doubles the import time of the package.
        self._handle = register_module_forward_pre_hook(torch.compiler.disable(self._record))
        return self

    def __exit__(self, *error: object) -> None:
        self._handle.remove()

    def _record(self, module: nn.Module, _: Any) -> None:
        if module not in self.found and not isinstance(module, GraphModule):  # not a recorded graph
            self.found[module] = None
            if self.on_first is not None:
                self.on_first(module)

    def outermost(self, known: Iterable[nn.Module] = ()) -> list[nn.Module]:
        """Return the known and then the recorded modules, without submodules of any of them."""
        candidates = list(dict.fromkeys([*known, *self.found]))
        inner = {part for root in candidates for part in root.modules() if part is not root}
        return [root for root in candidates if root not in inner]


@contextmanager
def evaluation_mode(*programs: Program) -> Iterator[dict[nn.Module, _ModuleState]]:
    """Switch all modules behind the programs, and all that run inside, to ``eval()``; restore their states on exit.

    Args:
        *programs: Models and guides.

    Yields:
        The modules that were switched, with their earlier states. The dictionary grows as further modules run.
    """
    kept: dict[nn.Module, _ModuleState] = {}
    owners = [_PythonState(bound_instance(program)) for program in programs]

    def switch(root: nn.Module) -> None:
        for part in root.modules():
            if part not in kept:
                kept[part] = _ModuleState(part)
                part.training = False

    try:
        for program in programs:
            for root in find_modules(program):
                switch(root)
        with ModuleRecorder(switch):
            yield kept
    finally:
        for state in (*owners, *kept.values()):
            state.restore()


class _PythonState:
    """Snapshot of an object's attributes of plain Python types, and of the states of its torch generators.

    For a callable that is not a module, nothing is saved.
    """

    def __init__(self, obj: Any) -> None:
        self.table: dict[str, Any] = vars(obj) if hasattr(obj, "__dict__") and not callable(obj) else {}
        if isinstance(obj, nn.Module):
            self.table = vars(obj)
        self.numbers = {name: v for name, v in self.table.items() if isinstance(v, (bool, int, float, str))}
        self.names = set(self.table)
        generators = [value for value in self.table.values() if isinstance(value, torch.Generator)]
        self.generators = [(generator, generator.get_state()) for generator in generators]

    def restore(self) -> None:
        for name in self.table.keys() - self.names:  # e.g. a counter that now shadows a class attribute
            if isinstance(self.table[name], (bool, int, float, str)):
                del self.table[name]
        self.table.update(self.numbers)
        for generator, state in self.generators:
            generator.set_state(state)


class _ModuleState(_PythonState):
    """Snapshot of a module: mode, plain Python attributes and buffers, which a forward pass may update."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.training = module.training
        self.buffers = [(buffer, buffer.clone()) for buffer in module._buffers.values() if buffer is not None]

    def restore(self) -> None:
        super().restore()
        with torch.no_grad():
            for buffer, saved in self.buffers:
                if not torch.equal(buffer, saved):
                    buffer.copy_(saved)
