r"""A recorded function: its tensor operations, and the external tensors that they read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.trace.graphs.fx import Tensors
from pyro_vae.trace.graphs.slots import Slot
from pyro_vae.trace.graphs.surroundings import Surroundings


class Mask(NamedTuple):
    """A tensor whose values determined shapes in a graph, its slot if it may be exchanged, and a copy of its values.

    These values are part of the record, unlike those of all other external tensors.
    """

    tensor: Tensor
    slot: Slot | None
    values: Tensor


class Record(NamedTuple):
    """A recorded function.

    Attributes:
        static: Python values that the function returned with its tensors.
        run: The graph as a function of the inputs, followed by the tensors that `read` returns.
        outside: External tensors that the graph reads, in the order of its inputs; held so that none is freed.
        slots: For each external tensor, the slot that holds it if the program may exchange it for another, else None.
        masks: Tensors whose values determined shapes.
    """

    static: Any
    run: Callable[..., Tensors]
    outside: list[Tensor]
    slots: list[Slot | None]
    masks: list[Mask]

    @classmethod
    def of(
        cls,
        static: Any,
        run: Callable[..., Tensors],
        outside: list[Tensor],
        masks: list[Tensor],
        surroundings: Surroundings,
    ) -> Record:
        """Build a record from the external tensors that it reads and those that determined shapes."""
        slots_by_id = surroundings.exchangeable_slots()
        slots = [slots_by_id.get(id(tensor)) for tensor in outside]
        return cls(static, run, outside, slots, [Mask(t, slots_by_id.get(id(t)), t.clone()) for t in masks])

    def is_stale(self) -> bool:
        """Return whether the values of a mask have changed since they determined shapes."""
        return any(not torch.equal(t if slot is None else slot.read(), values) for t, slot, values in self.masks)

    def read(self) -> list[Tensor]:
        """Return the external tensors, with exchanged ones replaced by those that their slots hold now."""
        return [t if slot is None else slot.read() for t, slot in zip(self.outside, self.slots, strict=True)]
