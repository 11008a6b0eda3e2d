r"""Slots: the locations in which the objects that a program can reach hold values."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from functools import partial
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
# Functions and classes of these libraries hold no state of a program, and are skipped. Instances of their modules,
# effect handlers and distributions may hold some, and are walked.
_LIBRARIES = {
    "torch", "pyro", "numpy", "scipy", "zuko", "math", "random", "functools", "itertools", "collections", "typing",
    "builtins", "logging", "warnings", "contextlib", "dataclasses", "abc", "enum", "os", "sys", "pathlib", "weakref",
    "types", "threading", "tqdm", "pytest", "_pytest", "pyro_vae",
}  # fmt: skip
_MODULE_INTERNALS = set(vars(nn.Module())) - {"training"}
# Attributes in which Pyro caches its latest results.
_CACHES = {"_intermediates_cache", "_inv", "__dict__"}
LARGEST = 1000  # entries; those of larger containers and arrays are not watched
GONE = object()  # read from a slot that no longer exists


class Slot(NamedTuple):
    """A location that holds a value.

    It is a key of a dictionary (e.g. of the attributes of an instance), an index of a sequence, a closure cell, or an
    attribute without a dictionary.
    """

    container: Any
    key: Any
    name: str

    def read(self) -> Any:
        """Return the current value, or `GONE`."""
        container, key = self.container, self.key
        if isinstance(container, Mapping):
            return container.get(key, GONE)
        if isinstance(container, CellType):
            try:
                return container.cell_contents
            except ValueError:  # empty
                return GONE
        if isinstance(container, (list, tuple, deque)):
            return container[key] if key < len(container) else GONE
        return getattr(container, key, GONE)

    def write(self, value: Any) -> None:
        """Store a value, unless the container is immutable."""
        if isinstance(self.container, CellType):
            self.container.cell_contents = value
        elif isinstance(self.container, (dict, list, deque)):
            self.container[self.key] = value
        elif isinstance(self.key, str) and not isinstance(self.container, Mapping):
            setattr(self.container, self.key, value)


def is_plain(value: Any) -> bool:
    """Return whether a value is a number, a string, None or another constant that a graph freezes."""
    return isinstance(value, _PLAIN)


def containers(obj: Any) -> list[Any]:
    """Return the containers of an object's attributes, entries and hooks; a new length reveals new contents."""
    if isinstance(obj, nn.Module):
        hooks = (obj._forward_hooks, obj._forward_pre_hooks, obj._backward_hooks)
        return [obj._parameters, obj._buffers, obj._modules, *hooks, vars(obj)]
    if isinstance(obj, (dict, list, set, frozenset, deque)):
        return [obj]
    if isinstance(obj, (Tensor, type, FunctionType, ModuleType)) or not _has_state(obj):
        return []
    return [vars(obj)] if hasattr(obj, "__dict__") else []


def contents(obj: Any, name: str) -> Iterator[Slot]:
    """Yield the slots of an object, which error messages call `name`."""
    if isinstance(obj, nn.Module):
        class_name = type(obj).__name__
        for table in (obj._parameters, obj._buffers, obj._modules):
            yield from (Slot(table, key, f"{class_name}.{key}") for key in table)
        yield from _attributes(obj, class_name, _MODULE_INTERNALS)
        yield from _of_class(type(obj))
    elif isinstance(obj, Tensor):
        return
    elif isinstance(obj, partial):
        yield from _sequence((obj.func, *obj.args), "partial")
        yield from (Slot(obj.keywords, key, f"{key} of a partial") for key in obj.keywords)
    elif isinstance(obj, property):
        yield from _sequence((obj.fget,), name)
    elif isinstance(obj, (staticmethod, classmethod)):
        yield from _sequence((obj.__func__,), name)
    elif isinstance(obj, MethodType):
        yield from _sequence((obj.__self__, obj.__func__), name)
    elif isinstance(obj, FunctionType):
        yield from _of_function(obj)
    elif isinstance(obj, CellType):
        yield Slot(obj, 0, name)
    elif isinstance(obj, Mapping):
        if len(obj) <= LARGEST:
            yield from (Slot(obj, key, f"{name}[{key!r}]") for key in obj)
    elif isinstance(obj, (list, tuple, deque)):
        if len(obj) <= LARGEST:
            yield from _sequence(obj, name)
    elif isinstance(obj, type):
        yield from _of_class(obj)
    elif _has_state(obj):
        yield from _attributes(obj, type(obj).__name__, set())
        yield from _of_class(type(obj))


def _sequence(values: Any, name: str) -> Iterator[Slot]:
    return (Slot(values, index, name) for index in range(len(values)))


def _attributes(obj: Any, name: str, excluded: set[str]) -> Iterator[Slot]:
    table = getattr(obj, "__dict__", {})
    cached = "_cached" if isinstance(obj, torch.distributions.Transform) else None  # prefix of its caches
    for key in table:
        if key not in excluded and key not in _CACHES and not (cached and key.startswith(cached)):
            yield Slot(table, key, f"{name}.{key}")
    for base in type(obj).__mro__:
        slots = () if _is_library(base.__module__) else base.__dict__.get("__slots__", ())
        for key in (slots,) if isinstance(slots, str) else slots:
            if hasattr(obj, key) and key not in ("__dict__", "__weakref__"):
                yield Slot(obj, key, f"{name}.{key}")


def _of_class(kind: type) -> Iterator[Slot]:
    """Yield class attributes and methods of a class and its bases, except those of libraries."""
    for base in kind.__mro__:
        if not _is_library(base.__module__):
            table = vars(base)
            for key, value in table.items():
                # Among dunder names, only methods: the others hold no state of a program.
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
        value = function.__globals__.get(variable, GONE)
        if value is GONE or isinstance(value, BuiltinFunctionType):
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


def _has_state(obj: Any) -> bool:
    if isinstance(obj, (Messenger, torch.distributions.Distribution, torch.distributions.Transform, SimpleNamespace)):
        return True
    module = type(obj).__module__
    if _is_library(module) and not module.startswith("pyro_vae."):
        return False
    return hasattr(obj, "__dict__") or hasattr(type(obj), "__slots__")


def _is_library(module: str) -> bool:
    return module.split(".")[0] in _LIBRARIES
