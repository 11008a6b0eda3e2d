r"""A record of a function: the tensor operations that it issued, and the tensors outside that they read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.trace.graphs.fx import Tensors
from pyro_vae.trace.graphs.slots import Slot
from pyro_vae.trace.graphs.surroundings import Surroundings


class Mask(NamedTuple):
    """A tensor whose values decided the shapes of a record: itself, its slot if it has one, and a copy of its values.

    Such values, unlike those of every other tensor that a record reads, are part of the record.
    """

    tensor: Tensor
    slot: Slot | None
    values: Tensor


class Record(NamedTuple):
    """A recorded function.

    `static` is what it returned beside tensors, and `run` takes its inputs followed by the tensors that `read` returns.
    `outside` are the tensors that it read when it was recorded, held here so that none of them is freed, and `slots`
    the places of those that the program may exchange for others, in the same order.
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
        """Return a record, given the tensors that it reads and those that decided its shapes."""
        places = surroundings.exchangeable_slots()
        slots = [places.get(id(tensor)) for tensor in outside]
        return cls(static, run, outside, slots, [Mask(t, places.get(id(t)), t.clone()) for t in masks])

    def is_stale(self) -> bool:
        """Whether the values of a mask have changed since it decided the shapes of the record."""
        return any(not torch.equal(t if slot is None else slot.read(), values) for t, slot, values in self.masks)

    def read(self) -> list[Tensor]:
        """Return the tensors outside that it reads, as they are now."""
        return [t if slot is None else slot.read() for t, slot in zip(self.outside, self.slots, strict=True)]
