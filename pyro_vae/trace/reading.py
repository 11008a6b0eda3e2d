r"""Reading a program without leaving a mark on it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from pyro_vae.trace.batch import Batch, Data, Program
from pyro_vae.trace.seeds import derive

_EMPTY_CELL = CellType()


def owner(program: Program) -> Any:
    """Return the object a bound method belongs to, or the callable itself."""
    return getattr(program, "__self__", program)


def modules(program: Program) -> list[nn.Module]:
    """Return the outermost modules behind a program, in the order they are found.

    They are looked for in the owner of a bound method and its attributes, in the arguments of a
    `functools.partial`, and in the closure and the globals that a function names.
    """
    found: dict[int, nn.Module] = {}
    _collect(program, found, set(), depth=4)
    inner = {id(part) for root in found.values() for part in root.modules() if part is not root}
    return [root for key, root in found.items() if key not in inner]


def _collect(thing: Any, found: dict[int, nn.Module], seen: set[int], depth: int) -> None:
    if id(thing) in seen or depth < 0:
        return
    seen.add(id(thing))
    inside: Iterable[Any] = ()
    if isinstance(thing, nn.Module):
        found[id(thing)] = thing
    elif isinstance(thing, partial):
        inside = (thing.func, *thing.args, *thing.keywords.values())
    elif isinstance(thing, MethodType):
        inside = (thing.__self__, thing.__func__)
    elif isinstance(thing, FunctionType):
        cells = (cell.cell_contents for cell in thing.__closure__ or () if cell != _EMPTY_CELL)
        named = (thing.__globals__.get(name) for name in thing.__code__.co_names)
        inside = (*cells, *(value for value in named if isinstance(value, nn.Module)))
    elif isinstance(thing, Mapping):
        inside = thing.values()
    elif isinstance(thing, (list, tuple)):
        inside = thing
    elif not isinstance(thing, (type, ModuleType, Tensor)):
        inside = getattr(thing, "__dict__", {}).values()
    for part in inside:
        _collect(part, found, seen, depth - 1)


class ModulesThatRun:
    """Collects the modules that run inside the context, in their order, whatever holds them.

    A walk of references misses a module behind two handlers, in a global dictionary or in a helper function; a hook
    on all modules does not.

    Args:
        on_first: called with each module before it runs for the first time.
    """

    def __init__(self, on_first: Callable[[nn.Module], None] | None = None) -> None:
        self.on_first = on_first
        self.found: dict[nn.Module, None] = {}

    def __enter__(self) -> ModulesThatRun:
        self._handle = register_module_forward_pre_hook(self._note)
        return self

    def __exit__(self, *error: object) -> None:
        self._handle.remove()

    @torch.compiler.disable
    def _note(self, module: nn.Module, _: Any) -> None:
        if module not in self.found:
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

    def switch(root: nn.Module) -> None:
        for part in root.modules():
            if part not in kept:
                kept[part] = _Kept(part)
                part.training = False

    try:
        for program in programs:
            for root in modules(program):
                switch(root)
        with ModulesThatRun(switch):
            yield kept
    finally:
        for each in kept.values():
            each.restore()


class _Kept:
    """A module as it was: its mode, its numbers in Python, and its buffers, which a forward pass may move."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.training = module, module.training
        table = vars(module).items()
        self.numbers = {name: value for name, value in table if isinstance(value, (bool, int, float, str))}
        self.buffers = [(buffer, buffer.clone()) for buffer in module._buffers.values() if buffer is not None]

    def restore(self) -> None:
        vars(self.module).update(self.numbers)
        with torch.no_grad():
            for buffer, before in self.buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


@contextmanager
def fork_rng(x: Tensor) -> Iterator[None]:
    """Restore the random streams of the CPU, of the device of x, of Python and of NumPy on leaving."""
    streams = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
            yield
    finally:
        random.setstate(streams[0])
        np.random.set_state(streams[1])


@contextmanager
def seeded(x: Tensor, seed: int | None) -> Iterator[None]:
    """Fork the random streams and seed those of torch on the CPU and on the device of x; None takes fresh entropy."""
    with fork_rng(x):
        # Not torch.manual_seed, which would also seed the CUDA devices whose streams are not restored.
        generator = torch.default_generator
        seed = generator.seed() if seed is None else seed
        generator.manual_seed(seed)
        if x.device.type == "cuda":
            torch.cuda.default_generators[x.device.index or 0].manual_seed(seed)
        yield


class _KeptFlags(Messenger):
    """Gives tensors that programs hand to `pyro.param`, which makes them require gradients, their own flags back."""

    def __enter__(self) -> Any:
        self.flags: dict[int, tuple[Tensor, bool]] = {}
        return super().__enter__()

    def __exit__(self, *error: Any) -> Any:
        for tensor, flag in self.flags.values():
            if tensor.is_leaf:
                tensor.requires_grad_(flag)
        return super().__exit__(*error)

    def _pyro_param(self, msg: Message) -> None:
        value = msg["args"][1] if len(msg["args"]) > 1 else msg["kwargs"].get("init_tensor")
        if isinstance(value, Tensor) and str(msg["name"]) not in pyro.get_param_store():
            self.flags.setdefault(id(value), (value, value.requires_grad))


def stored_ids() -> dict[str, int]:
    """Return the identity of the tensor that is trained under each name of the param store."""
    store: Any = pyro.get_param_store()
    return {name: id(tensor) for name, tensor in store._params.items()}


@contextmanager
def scoped_store() -> Iterator[None]:
    """Give the param store back as it is now: parameters that appear inside are not in it."""
    store = pyro.get_param_store()
    try:
        with store.scope(store.get_state()):
            yield
    finally:
        # `get_state` takes from every tensor the reference to its unconstrained one; looking it up puts it back, for
        # a driver that holds what it has captured.
        for name in list(store):
            store[name]


@contextmanager
def reading(*programs: Program, x: Data, seed: int | None = None, purpose: str = "") -> Iterator[None]:
    """Read programs: no parameter, module mode, param store entry or random stream of torch changes.

    The param store is scoped to a copy of its present state: an empty scope would score a program that
    uses `pyro.param` as if it were untrained.

    Args:
        programs: models and guides that are read inside the context.
        x: a batch on the device where they run.
        seed: seed of the draws inside; ``None`` takes fresh entropy.
        purpose: what the draws are for. Draws of two purposes share no noise, whatever the seeds.
    """
    with ExitStack() as stack:
        stack.enter_context(seeded(Batch.of(x).x, derive(seed, purpose)))
        stack.enter_context(scoped_store())
        stack.enter_context(_KeptFlags())
        stack.enter_context(evaluation_mode(*programs))
        yield


@contextmanager
def quietly(*programs: Program, x: Data, seed: int | None = None, purpose: str = "") -> Iterator[None]:
    """Read programs without Pyro's validation, which would check every draw and every density again."""
    with reading(*programs, x=x, seed=seed, purpose=purpose), pyro.validation_enabled(False):
        yield
