r"""The Python values that a program can reach, watched so that no recorded graph becomes stale.

A graph freezes every Python number that was known while it was recorded. So the values that can be reached from the
program's owner, its closure and the globals that its code names are listed once, as slots:

    numbers, strings, containers    compared at every call; after a change the graph is no longer valid
    parameters                      compared by identity; their values are inputs of the graph
    other tensors                   compared by shape, dtype and device, and read again at every call, so that labels in
                                    an attribute are those of the batch

Values that this walk cannot reach (files, C extensions, very large containers) are left to `Graph.compare`.
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
        roots: Programs, and other objects from which the walk starts.

    Raises:
        OverflowError: If more than 50,000 values can be reached.
    """

    def __init__(self, roots: Iterable[Any]) -> None:
        self._roots = list(roots)
        self._ignored: set[tuple[int, Any]] = set()
        self._states: dict[Any, int] = {}
        self.last_change = "a Python value that it reads"
        self.scan()

    def scan(self) -> None:
        """List the slots that can be reached now, and number the state that they are in."""
        slots: list[Slot] = []
        self.modules: dict[nn.Module, None] = {}
        self._containers: list[Any] = []
        self._arrays: list[np.ndarray] = []
        kept: dict[int, Any] = {}  # kept alive, so that no id is reused
        pending: list[tuple[Any, str]] = [(root, type(root).__name__) for root in reversed(self._roots)]
        while pending:
            obj, name = pending.pop()
            if id(obj) in kept or is_plain(obj):
                continue
            kept[id(obj)] = obj
            if isinstance(obj, nn.Module):
                self.modules[obj] = None
            if getattr(obj, "is_cache", False) is True:
                continue  # a declared cache, whose contents no graph freezes
            self._containers += containers(obj)
            if isinstance(obj, np.ndarray) and obj.size <= LARGEST:
                self._arrays.append(obj)
            new_slots = [slot for slot in contents(obj, name) if (id(slot.container), slot.key) not in self._ignored]
            slots += new_slots
            pending += [(slot.read(), slot.name) for slot in new_slots]
            if len(slots) > _MOST:
                raise OverflowError(f"it reaches more than {_MOST} Python values")
        self._kept = kept
        mapping_slots = [slot for slot in slots if isinstance(slot.container, Mapping)]
        tuple_slots = [slot for slot in slots if isinstance(slot.container, tuple)]
        self._getters = [(slot.container.get, slot.key) for slot in mapping_slots]
        self._others = [slot for slot in slots if not isinstance(slot.container, (Mapping, tuple))]
        self._constant = [slot.read() for slot in tuple_slots]
        self.slots = mapping_slots + self._others + tuple_slots
        self._empty = [container for container in self._containers if not container]
        self._filled = [container for container in self._containers if container]
        self._values = self.values()
        self._tensors = [value for value in self._values if isinstance(value, Tensor)]
        self._present = self._forms()
        counts = Counter(id(tensor) for tensor in self._tensors)
        # A tensor in several slots may be exchanged in only some of them, so that it is compared by identity.
        shared = [tensor_id for tensor_id, count in counts.items() if count > 1]
        state = tuple(map(_frozen, self._values)), self._present, tuple(shared)
        self._state = self._states.setdefault(state, len(self._states))

    def state(self) -> int:
        """Return a number for everything that a graph freezes; calls with equal numbers may share a record."""
        # Identical objects hold identical numbers, and entries of containers are slots themselves. So nothing needs to
        # be hashed as long as every slot holds the same object.
        unchanged = all(map(operator.is_, self.values(), self._values)) and self._present == self._forms()
        if not unchanged:
            self.last_change = next((slot.name for slot, _ in self.find_changes(self._values)), self.last_change)
            self.scan()
        return self._state

    @property
    def num_states(self) -> int:
        """Number of distinct states so far."""
        return len(self._states)

    def values(self) -> list[Any]:
        """Return the current value of every slot."""
        read = [get(key, GONE) for get, key in self._getters] + [slot.read() for slot in self._others]
        return read + self._constant

    def find_changes(self, before: list[Any]) -> list[tuple[Slot, Any]]:
        """Return the slots that hold another number or object than in `before`, with their old values."""
        pairs = zip(self.slots, before, self.values(), strict=True)
        return [(slot, old) for slot, old, new in pairs if new is not old and _frozen(new, True) != _frozen(old, True)]

    def exchangeable_slots(self) -> dict[int, Slot]:
        """Return the slot of each tensor that may be exchanged, by the tensor's id; only tensors with a single slot."""
        slots_by_id: dict[int, list[Slot]] = {}
        for slot, value in zip(self.slots, self._values, strict=True):
            if isinstance(value, Tensor) and not _is_parameter(value):
                slots_by_id.setdefault(id(value), []).append(slot)
        return {key: slots[0] for key, slots in slots_by_id.items() if len(slots) == 1}

    def ignore(self, slot: Slot) -> None:
        """Stop watching a slot, which the program uses as a cache."""
        self._ignored.add((id(slot.container), slot.key))

    def _forms(self) -> Any:
        """Return properties that change while objects stay the same: sizes, classes, tensor flags, and small arrays."""
        return (
            any(self._empty),  # nearly all stay empty, and this is the fastest check
            tuple(map(len, self._filled)),
            tuple(map(type, self.modules)),
            tuple([tensor.requires_grad for tensor in self._tensors]),
            tuple([array.tobytes() for array in self._arrays]),
        )

    def buffers(self) -> list[Tensor]:
        """Return the buffers of the modules, without duplicates."""
        tables = [module._buffers.values() for module in self.modules]
        return list({id(buffer): buffer for table in tables for buffer in table if buffer is not None}.values())

    def lists(self) -> list[tuple[Any, int]]:
        """Return the lists that can be reached, with their lengths."""
        return [(container, len(container)) for container in self._containers if isinstance(container, list)]


def _is_parameter(value: Tensor) -> bool:
    return isinstance(value, nn.Parameter) or (value.is_leaf and value.requires_grad)


def _frozen(value: Any, every_tensor: bool = False) -> Any:
    """Return the part of a value that a graph freezes: a number itself, or the form of an exchangeable tensor."""
    if is_plain(value):
        return type(value), value
    if isinstance(value, Tensor) and not every_tensor and not _is_parameter(value):
        return value.shape, value.dtype, value.device
    return id(value)
