r"""The modules behind a program, and the modes in which they run."""

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
    """Return the object a bound method belongs to, or the callable itself, seen through wrappers."""
    inner = inspect.unwrap(program)
    return getattr(inner, "__self__", inner)


def find_modules(program: Program) -> list[nn.Module]:
    """Return the outermost modules behind a program, in the order they are found.

    They are looked for in the owner of a bound method and its attributes, in the arguments of a
    `functools.partial`, and in the closure and the globals that a function names.
    """
    modules: dict[int, nn.Module] = {}
    _collect(program, modules, set(), depth=4)
    inner = {id(part) for root in modules.values() for part in root.modules() if part is not root}
    return [root for key, root in modules.items() if key not in inner]


# The walk of `graphs.slots`, which watches numbers, is another one on purpose. It follows every reference, which takes
# milliseconds, and skips what belongs to a library. This one runs at every reading: it goes no further than four
# references, through a library's objects as well, and stops at modules. Their order is that of a checkpoint, so that
# with the order of the other walk a checkpoint of several modules would no longer load.
def _collect(obj: Any, modules: dict[int, nn.Module], seen: set[int], depth: int) -> None:
    if id(obj) in seen or depth < 0:
        return
    seen.add(id(obj))
    inside: Iterable[Any] = ()
    if isinstance(obj, nn.Module):
        modules[id(obj)] = obj
    elif isinstance(obj, partial):
        inside = (obj.func, *obj.args, *obj.keywords.values())
    elif isinstance(obj, MethodType):
        inside = (obj.__self__, obj.__func__)
    elif isinstance(obj, FunctionType):
        cells = (cell.cell_contents for cell in obj.__closure__ or () if cell != _EMPTY_CELL)
        named = (obj.__globals__.get(name) for name in obj.__code__.co_names)
        inside = (*cells, *(value for value in named if isinstance(value, nn.Module)))
    elif isinstance(obj, Mapping):
        inside = obj.values()
    elif isinstance(obj, (list, tuple)):
        inside = obj
    elif not isinstance(obj, (type, ModuleType, Tensor)):
        inside = getattr(obj, "__dict__", {}).values()
    for part in inside:
        _collect(part, modules, seen, depth - 1)


class ModuleRecorder:
    """Collects the modules that run inside the context, in their order, whatever holds them.

    A walk of references misses a module behind two handlers, in a global dictionary or in a helper function; a hook
    on all modules does not.

    Args:
        on_first: called with each module before it runs for the first time.
    """

    def __init__(self, on_first: Callable[[nn.Module], None] | None = None) -> None:
        self.on_first = on_first
        self.found: dict[nn.Module, None] = {}

    def __enter__(self) -> ModuleRecorder:
        # The hook is no part of a module that torch compiles. Not said by a decorator: that would import the compiler
        # with this module, and doubles the time that the package takes to import.
        self._handle = register_module_forward_pre_hook(torch.compiler.disable(self._note))
        return self

    def __exit__(self, *error: object) -> None:
        self._handle.remove()

    def _note(self, module: nn.Module, _: Any) -> None:
        if module not in self.found and not isinstance(module, GraphModule):  # a record is no part of a program
            self.found[module] = None
            if self.on_first is not None:
                self.on_first(module)

    def outermost(self, known: Iterable[nn.Module] = ()) -> list[nn.Module]:
        """Return the modules known and those found that are no part of another, in this order."""
        every = list(dict.fromkeys([*known, *self.found]))
        inner = {part for root in every for part in root.modules() if part is not root}
        return [root for root in every if root not in inner]


@contextmanager
def evaluation_mode(*programs: Program) -> Iterator[dict[nn.Module, _Kept]]:
    """Switch every module behind the programs, or that runs inside, to ``eval()``; each is as it was after.

    Yields the modules switched, with what they were.
    """
    kept: dict[nn.Module, _Kept] = {}
    owners = [_Numbers(bound_instance(program)) for program in programs]

    def switch(root: nn.Module) -> None:
        for part in root.modules():
            if part not in kept:
                kept[part] = _Kept(part)
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


class _Numbers:
    """The numbers of an object in Python, and its generators, as they were."""

    def __init__(self, obj: Any) -> None:
        self.table: dict[str, Any] = vars(obj) if hasattr(obj, "__dict__") and not callable(obj) else {}
        if isinstance(obj, nn.Module):
            self.table = vars(obj)
        self.numbers = {name: v for name, v in self.table.items() if isinstance(v, (bool, int, float, str))}
        self.names = set(self.table)
        generators = [value for value in self.table.values() if isinstance(value, torch.Generator)]
        self.generators = [(generator, generator.get_state()) for generator in generators]

    def restore(self) -> None:
        for name in self.table.keys() - self.names:  # a counter that shadows one of the class
            if isinstance(self.table[name], (bool, int, float, str)):
                del self.table[name]
        self.table.update(self.numbers)
        for generator, state in self.generators:
            generator.set_state(state)


class _Kept(_Numbers):
    """A module as it was: its mode, its numbers in Python, and its buffers, which a forward pass may move."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.training = module.training
        self.buffers = [(buffer, buffer.clone()) for buffer in module._buffers.values() if buffer is not None]

    def restore(self) -> None:
        super().restore()
        with torch.no_grad():
            for buffer, before in self.buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)
