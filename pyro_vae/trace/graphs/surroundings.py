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
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from pyro_vae.trace.graphs.slots import GONE, LARGEST, Slot, containers, contents, is_plain

_MOST = 50_000


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
            obj, name = waiting.pop()
            if id(obj) in kept or is_plain(obj):
                continue
            kept[id(obj)] = obj
            if isinstance(obj, nn.Module):
                self.modules[obj] = None
            if getattr(obj, "is_cache", False) is True:
                continue
            self._containers += containers(obj)
            if isinstance(obj, np.ndarray) and obj.size <= LARGEST:
                self._arrays.append(obj)
            new_slots = [slot for slot in contents(obj, name) if (id(slot.container), slot.key) not in self._ignored]
            slots += new_slots
            waiting += [(slot.read(), slot.name) for slot in new_slots]
            if len(slots) > _MOST:
                raise OverflowError(f"it reaches more than {_MOST} values of Python")
        self._kept = kept
        of_dicts = [slot for slot in slots if isinstance(slot.container, Mapping)]
        of_tuples = [slot for slot in slots if isinstance(slot.container, tuple)]
        self._getters = [(slot.container.get, slot.key) for slot in of_dicts]
        self._others = [slot for slot in slots if not isinstance(slot.container, (Mapping, tuple))]
        self._constant = [slot.read() for slot in of_tuples]
        self.slots = of_dicts + self._others + of_tuples
        self._empty = [container for container in self._containers if not container]
        self._filled = [container for container in self._containers if container]
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
            self.last_change = next((slot.name for slot, _ in self.find_changes(self._values)), self.last_change)
            self.scan()
        return self._state

    @property
    def num_states(self) -> int:
        """How many states there have been."""
        return len(self._states)

    def values(self) -> list[Any]:
        """Return what every slot holds."""
        read = [get(key, GONE) for get, key in self._getters] + [slot.read() for slot in self._others]
        return read + self._constant

    def find_changes(self, before: list[Any]) -> list[tuple[Slot, Any]]:
        """Return the slots that hold another number or object than before, with what they held."""
        pairs = zip(self.slots, before, self.values(), strict=True)
        return [(slot, old) for slot, old, new in pairs if new is not old and _frozen(new, True) != _frozen(old, True)]

    def exchangeable_slots(self) -> dict[int, Slot]:
        """Return where each tensor stands that may be exchanged for another, by its id; those in one place only."""
        slots_by_id: dict[int, list[Slot]] = {}
        for slot, value in zip(self.slots, self._values, strict=True):
            if isinstance(value, Tensor) and not _is_parameter(value):
                slots_by_id.setdefault(id(value), []).append(slot)
        return {key: slots[0] for key, slots in slots_by_id.items() if len(slots) == 1}

    def ignore(self, slot: Slot) -> None:
        """Watch a slot no longer: the program keeps there what it has computed last."""
        self._ignored.add((id(slot.container), slot.key))

    def _forms(self) -> Any:
        """Return what changes while the objects stay: sizes, classes, flags of tensors, and numbers in small arrays."""
        return (
            any(self._empty),  # most of them are, and this is the fastest way to ask
            tuple(map(len, self._filled)),
            tuple(map(type, self.modules)),
            tuple([tensor.requires_grad for tensor in self._tensors]),
            tuple([array.tobytes() for array in self._arrays]),
        )

    def buffers(self) -> list[Tensor]:
        """Return the buffers of the modules, each once."""
        tables = [module._buffers.values() for module in self.modules]
        return list({id(buffer): buffer for table in tables for buffer in table if buffer is not None}.values())

    def lists(self) -> list[tuple[Any, int]]:
        """Return the lists among them, with their lengths."""
        return [(container, len(container)) for container in self._containers if isinstance(container, list)]


def _is_parameter(value: Tensor) -> bool:
    return isinstance(value, nn.Parameter) or (value.is_leaf and value.requires_grad)


def _frozen(value: Any, every_tensor: bool = False) -> Any:
    """Return what a record knows of a value: of a number all, of a tensor that may be exchanged its form."""
    if is_plain(value):
        return type(value), value
    if isinstance(value, Tensor) and not every_tensor and not _is_parameter(value):
        return value.shape, value.dtype, value.device
    return id(value)
