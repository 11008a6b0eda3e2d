r"""Side effects of a function that is run to be recorded or compared: undone, and refused where Python makes them.

A record repeats what its function does to tensors, since that is made of operations: a BatchNorm goes on counting. What
the function does in Python (a counter, a list that grows, a draw from NumPy) happens only while it is recorded, so that
a replay would silently leave it out.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.trace.graphs.fx import GraphError
from pyro_vae.trace.graphs.slots import is_plain
from pyro_vae.trace.graphs.surroundings import Surroundings


@contextmanager
def undo_effects(surroundings: Surroundings) -> Iterator[None]:
    """Undo what happens inside to the objects around a program; the caller restores the random streams.

    Raises:
        GraphError: a number or a list in Python has changed, or NumPy or Python have drawn random numbers.
    """
    values = surroundings.values()
    # Buffers, and whatever else holds numbers of its own: a moving average in an attribute, for one.
    tensors = [value for value in values if isinstance(value, Tensor) and not value.requires_grad]
    before = [(t, t.clone()) for t in {id(t): t for t in (*surroundings.buffers(), *tensors)}.values()]
    lists = surroundings.lists()
    generators = [(value, value.get_state()) for value in values if isinstance(value, torch.Generator)]
    streams = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in before:
                tensor.copy_(value)
        for generator, state in generators:
            generator.set_state(state)
        drawn = repr(streams) != repr((random.getstate(), np.random.get_state()))
        changed = surroundings.find_changes(values)
        counted = [(slot, old) for slot, old in changed if _is_kept(slot.read(), old)]
        for slot, old in counted:
            slot.write(old)
        grown = [things for things, length in lists if len(things) > length]
        for things, length in lists:
            del things[length:]
    if drawn:
        raise GraphError("it draws random numbers from NumPy or Python, which a graph would freeze")
    if grown:
        raise GraphError("a list of the program grows from call to call, which a graph would not do")
    for slot, _ in counted:
        raise GraphError(f"{slot.name} changes from call to call, which a graph would freeze; make it a tensor")
    # What is left is caches, which hold what the program has computed last. To watch them would make every call look
    # like a change of the program.
    for slot, _ in changed:
        surroundings.ignore(slot)
    if changed:
        surroundings.scan()


def _is_kept(new: Any, old: Any) -> bool:
    """Whether a new value continues an old one from call to call: a counter, or a tensor that is rebound.

    A value in the place of None, or of another object, is a cache.
    """
    if isinstance(new, Tensor) and isinstance(old, Tensor):
        return True
    return is_plain(new) and is_plain(old)
