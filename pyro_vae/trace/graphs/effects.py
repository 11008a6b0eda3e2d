r"""Undo the side effects of a function that runs to be recorded or compared, and reject those that no graph repeats.

A graph repeats changes to tensors, because these are operations: BatchNorm keeps updating its statistics. Changes to
Python objects (a counter, a growing list, a draw from NumPy's generator) happen only while the function is recorded, so
that a replay would silently omit them.
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
    """Undo changes made inside the context to the objects around a program; the caller restores the random generators.

    Raises:
        GraphError: If a Python number changed, a tensor was rebound, a list grew, or NumPy or Python drew random
            numbers.
    """
    values = surroundings.values()
    # Buffers, and tensors in attributes that the program may update in place, e.g. a moving average.
    tensors = [value for value in values if isinstance(value, Tensor) and not value.requires_grad]
    before = [(t, t.clone()) for t in {id(t): t for t in (*surroundings.buffers(), *tensors)}.values()]
    lists = surroundings.lists()
    generators = [(value, value.get_state()) for value in values if isinstance(value, torch.Generator)]
    streams = _streams()
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in before:
                tensor.copy_(value)
        for generator, state in generators:
            generator.set_state(state)
        drawn = _streams() != streams
        changed = surroundings.find_changes(values)
        continued = [(slot, old) for slot, old in changed if _is_continued(slot.read(), old)]
        for slot, old in continued:
            slot.write(old)
        grown = [contents for contents, length in lists if len(contents) > length]
        for contents, length in lists:
            del contents[length:]
    if drawn:
        raise GraphError("it draws random numbers from NumPy or Python, which a graph would freeze")
    if grown:
        raise GraphError("a list of the program grows from call to call, which a graph would not repeat")
    for slot, _ in continued:
        raise GraphError(f"{slot.name} changes from call to call, which a graph would freeze; make it a tensor")
    # The remaining changes are caches of the program's latest results. If they were watched, every call would look like
    # a change of the program.
    for slot, _ in changed:
        surroundings.ignore(slot)
    if changed:
        surroundings.scan()


def _streams() -> Any:
    """Return the states of the generators of Python and NumPy as values that can be compared."""
    kind, words, *rest = np.random.get_state()
    return random.getstate(), kind, np.asarray(words).tobytes(), rest


def _is_continued(new: Any, old: Any) -> bool:
    """Return whether a new value continues an old one from call to call: a counter, or a tensor that is rebound.

    Every other replacement, e.g. of None by a tensor, is taken for a cache.
    """
    if isinstance(new, Tensor) and isinstance(old, Tensor):
        return True
    return is_plain(new) and is_plain(old)
