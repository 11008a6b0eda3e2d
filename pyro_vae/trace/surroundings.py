r"""What a program can reach in Python, watched so that no record of it goes stale.

A record of tensor operations freezes every number that Python knew while it was made. So all that the program reaches
from its owner, its closure and the globals that its code names is listed once, as slots of dictionaries and lists:

    numbers, words, containers    compared at every call: where one has changed, the record does not stand any more
    parameters and buffers        compared by identity; their values are inputs of the record anyway
    other tensors                 read anew at every call, so that labels in an attribute are those of the batch

What the walk cannot see (files, C extensions, very large containers) is left to the comparison of record and program.
"""

from __future__ import annotations

import operator
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
# Libraries whose functions and classes hold no state of a program. Their modules, handlers and distributions are
# objects that do, and are walked.
_LIBRARIES = {
    "torch", "pyro", "numpy", "scipy", "zuko", "math", "random", "functools", "itertools", "collections", "typing",
    "builtins", "logging", "warnings", "contextlib", "dataclasses", "abc", "enum", "os", "sys", "pathlib", "weakref",
    "types", "threading", "tqdm", "pytest", "_pytest", "pyro_vae",
}  # fmt: skip
_MODULE_INTERNALS = set(vars(nn.Module())) - {"training"}
# Attributes in which torch and Pyro keep what they have computed last.
_CACHES = {"_cached_x_y", "_cached_log_df_dx", "_cached_logDetJ", "_intermediates_cache", "_inv", "__dict__"}
_LARGEST = 1000  # contents of one container that are watched
_MOST = 50_000
_GONE = object()


class Surroundings:
    """The Python objects around programs.

    Args:
        roots: programs, and objects whose attributes count as well.

    Raises:
        OverflowError: they reach too much to watch.
    """

    def __init__(self, roots: Iterable[Any]) -> None:
        self._roots = list(roots)
        self._ignored: set[tuple[int, Any]] = set()
        self._states: dict[Any, int] = {}
        self.last_change = "what it reads in Python"
        self.scan()

    def scan(self) -> None:
        """List the slots as they are now."""
        slots: list[Slot] = []
        self.modules: dict[nn.Module, None] = {}
        self._containers: list[Any] = []
        self._arrays: list[np.ndarray] = []
        kept: dict[int, Any] = {}  # alive, so that no other object takes an id
        waiting: list[tuple[Any, str]] = [(root, type(root).__name__) for root in reversed(self._roots)]
        while waiting:
            thing, name = waiting.pop()
            if id(thing) in kept or isinstance(thing, _PLAIN):
                continue
            kept[id(thing)] = thing
            if isinstance(thing, nn.Module):
                self.modules[thing] = None
            if getattr(thing, "is_cache", False) is True:
                continue
            self._containers += _containers(thing)
            if isinstance(thing, np.ndarray) and thing.size <= _LARGEST:
                self._arrays.append(thing)
            found = [slot for slot in _contents(thing, name) if (id(slot.container), slot.key) not in self._ignored]
            slots += found
            waiting += [(_read(slot), slot.name) for slot in found]
            if len(slots) > _MOST:
                raise OverflowError(f"it reaches more than {_MOST} values of Python")
        self._kept = kept
        of_dicts = [slot for slot in slots if isinstance(slot.container, Mapping)]
        self._getters = [(slot.container.get, slot.key) for slot in of_dicts]
        self._others = [slot for slot in slots if not isinstance(slot.container, Mapping)]
        self.slots = of_dicts + self._others
        self._values = self.values()
        self._tensors = [value for value in self._values if isinstance(value, Tensor)]
        self._present = self._forms()
        counts = Counter(id(tensor) for tensor in self._tensors)
        # A tensor in two places cannot be exchanged in one of them alone: it counts by its identity.
        twice = [tensor_id for tensor_id, count in counts.items() if count > 1]
        state = tuple(map(_frozen, self._values)), self._present, tuple(twice)
        self._state = self._states.setdefault(state, len(self._states))

    def state(self) -> int:
        """Return a number for all that a record freezes; calls with one number may share a record."""
        # The same objects hold the same numbers, and what containers hold are slots of their own. So nothing is hashed
        # while nothing has changed.
        same = all(map(operator.is_, self.values(), self._values)) and self._present == self._forms()
        if not same:
            self.last_change = next((slot.name for slot, _ in self.changed(self._values)), self.last_change)
            self.scan()
        return self._state

    @property
    def number_of_states(self) -> int:
        """How many states there have been."""
        return len(self._states)

    def values(self) -> list[Any]:
        """Return what every slot holds."""
        return [get(key, _GONE) for get, key in self._getters] + [_read(slot) for slot in self._others]

    def changed(self, before: list[Any]) -> list[tuple[Slot, Any]]:
        """Return the slots that hold another number or object than before, with what they held."""
        pairs = zip(self.slots, before, self.values(), strict=True)
        return [(slot, old) for slot, old, new in pairs if new is not old and _frozen(new, True) != _frozen(old, True)]

    def places(self) -> dict[int, Slot]:
        """Return where each tensor stands that may be exchanged for another, by its id; those in one place only."""
        found: dict[int, list[Slot]] = {}
        for slot, value in zip(self.slots, self._values, strict=True):
            if isinstance(value, Tensor) and not _is_parameter(value):
                found.setdefault(id(value), []).append(slot)
        return {key: slots[0] for key, slots in found.items() if len(slots) == 1}

    def ignore(self, slot: Slot) -> None:
        """Watch a slot no longer: the program keeps there what it has computed last."""
        self._ignored.add((id(slot.container), slot.key))

    def _forms(self) -> Any:
        """Return what changes while the objects stay: sizes, classes, flags of tensors, and numbers in small arrays."""
        return (
            tuple(map(len, self._containers)),
            tuple(map(type, self.modules)),
            tuple([tensor.requires_grad for tensor in self._tensors]),
            tuple([array.tobytes() for array in self._arrays]),
        )

    def lists(self) -> list[tuple[Any, int]]:
        """Return the lists among them, with their lengths."""
        return [(container, len(container)) for container in self._containers if isinstance(container, list)]


class Slot(NamedTuple):
    """A place that holds a value: a key of a dictionary, an index of a sequence, a cell, or an attribute in a slot."""

    container: Any
    key: Any
    name: str

    def read(self) -> Any:
        """Return what stands there now."""
        return _read(self)

    def write(self, value: Any) -> None:
        """Put a value there, where that is possible."""
        if isinstance(self.container, CellType):
            self.container.cell_contents = value
        elif isinstance(self.container, (dict, list, deque)):
            self.container[self.key] = value
        elif isinstance(self.key, str) and not isinstance(self.container, Mapping):
            setattr(self.container, self.key, value)


def _read(slot: Slot) -> Any:
    container, key = slot.container, slot.key
    if isinstance(container, Mapping):
        return container.get(key, _GONE)
    if isinstance(container, CellType):
        try:
            return container.cell_contents
        except ValueError:  # empty
            return _GONE
    if isinstance(container, (list, tuple, deque)):
        return container[key] if key < len(container) else _GONE
    return getattr(container, key, _GONE)


def is_plain(value: Any) -> bool:
    """Whether a value is a number, a word or nothing, which a record freezes."""
    return isinstance(value, _PLAIN)


def _is_parameter(value: Tensor) -> bool:
    return isinstance(value, nn.Parameter) or (value.is_leaf and value.requires_grad)


def _frozen(value: Any, every_tensor: bool = False) -> Any:
    """Return what a record knows of a value: of a number all, of a tensor that may be exchanged its form."""
    if isinstance(value, _PLAIN):
        return type(value), value
    if isinstance(value, Tensor) and not every_tensor and not _is_parameter(value):
        return value.shape, value.dtype, value.device
    return id(value)


def _containers(thing: Any) -> list[Any]:
    """Return what an object holds its contents in, whose length tells of new ones: also attributes and hooks."""
    if isinstance(thing, nn.Module):
        hooks = (thing._forward_hooks, thing._forward_pre_hooks, thing._backward_hooks)
        return [thing._parameters, thing._buffers, thing._modules, *hooks, vars(thing)]
    if isinstance(thing, (dict, list, set, frozenset, deque)):
        return [thing]
    if isinstance(thing, (Tensor, type, FunctionType, ModuleType)) or not _has_state(thing):
        return []
    return [vars(thing)] if hasattr(thing, "__dict__") else []


def _contents(thing: Any, name: str) -> Iterator[Slot]:
    """Yield the slots of an object."""
    if isinstance(thing, nn.Module):
        own = type(thing).__name__
        for table in (thing._parameters, thing._buffers, thing._modules):
            yield from (Slot(table, key, f"{own}.{key}") for key in table)
        yield from _attributes(thing, own, _MODULE_INTERNALS)
        yield from _of_class(type(thing))
    elif isinstance(thing, Tensor):
        return
    elif isinstance(thing, partial):
        yield from _sequence((thing.func, *thing.args), "partial")
        yield from (Slot(thing.keywords, key, f"{key} of a partial") for key in thing.keywords)
    elif isinstance(thing, property):
        yield from _sequence((thing.fget,), name)
    elif isinstance(thing, (staticmethod, classmethod)):
        yield from _sequence((thing.__func__,), name)
    elif isinstance(thing, MethodType):
        yield from _sequence((thing.__self__, thing.__func__), name)
    elif isinstance(thing, FunctionType):
        yield from _of_function(thing)
    elif isinstance(thing, CellType):
        yield Slot(thing, 0, name)
    elif isinstance(thing, Mapping):
        if len(thing) <= _LARGEST:
            yield from (Slot(thing, key, f"{name}[{key!r}]") for key in thing)
    elif isinstance(thing, (list, tuple, deque)):
        if len(thing) <= _LARGEST:
            yield from _sequence(thing, name)
    elif isinstance(thing, type):
        yield from _of_class(thing)
    elif _has_state(thing):
        yield from _attributes(thing, type(thing).__name__, set())
        yield from _of_class(type(thing))


def _sequence(things: Any, name: str) -> Iterator[Slot]:
    return (Slot(things, index, name) for index in range(len(things)))


def _attributes(thing: Any, name: str, left_out: set[str]) -> Iterator[Slot]:
    table = getattr(thing, "__dict__", {})
    yield from (Slot(table, key, f"{name}.{key}") for key in table if key not in left_out and key not in _CACHES)
    for base in type(thing).__mro__:
        slots = () if _is_library(base.__module__) else base.__dict__.get("__slots__", ())
        for key in (slots,) if isinstance(slots, str) else slots:
            if hasattr(thing, key) and key not in ("__dict__", "__weakref__"):
                yield Slot(thing, key, f"{name}.{key}")


def _of_class(kind: type) -> Iterator[Slot]:
    """Yield class attributes and methods of classes that are no library's."""
    for base in kind.__mro__:
        if not _is_library(base.__module__):
            table = vars(base)
            for key, value in table.items():
                # Of the names that Python gives meaning to, methods alone.
                if isinstance(value, FunctionType) or not key.startswith("__"):
                    yield Slot(table, key, f"{base.__name__}.{key}")


def _of_function(function: FunctionType) -> Iterator[Slot]:
    if _is_library(function.__module__ or "") and not function.__closure__:
        return
    name = function.__qualname__
    for cell, variable in zip(function.__closure__ or (), function.__code__.co_freevars, strict=True):
        yield Slot(cell, 0, f"{variable} of {name}")
    if function.__defaults__:
        yield Slot(function, "__defaults__", f"the defaults of {name}")
    if function.__kwdefaults__:
        yield from (Slot(function.__kwdefaults__, key, f"{key} of {name}") for key in function.__kwdefaults__)
    if _is_library(function.__module__ or ""):
        return
    names = list(_names(function.__code__))
    for variable in names:
        value = function.__globals__.get(variable, _GONE)
        if value is _GONE or isinstance(value, BuiltinFunctionType):
            continue
        if isinstance(value, ModuleType):
            if not _is_library(value.__name__):
                table = vars(value)
                yield from (Slot(table, n, f"{variable}.{n}") for n in names if n in table)
        else:
            yield Slot(function.__globals__, variable, f"the global {variable}")


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _has_state(thing: Any) -> bool:
    if isinstance(thing, (Messenger, torch.distributions.Distribution, torch.distributions.Transform)):
        return True
    module = type(thing).__module__
    if _is_library(module) and not module.startswith("pyro_vae."):
        return False
    return hasattr(thing, "__dict__") or hasattr(type(thing), "__slots__")


def _is_library(module: str) -> bool:
    return module.split(".")[0] in _LIBRARIES
