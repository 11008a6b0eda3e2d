r"""Two functions that ought to do the same, run on the same inputs and the same noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyro
import torch
from torch import Tensor

from pyro_vae.trace.graphs.effects import undo_effects
from pyro_vae.trace.graphs.fx import Tensors
from pyro_vae.trace.graphs.surroundings import Surroundings
from pyro_vae.trace.isolation import fork_rng

# A record has the operations of the function, in its order; a compiler adds rounding, which sums of many terms enlarge.
TOLERANCE = 1e-4


def same_results(
    first: Callable[..., Tensors],
    second: Callable[..., Tensors],
    inputs: tuple[Tensor, ...],
    surroundings: Surroundings,
    tolerance: float,
) -> bool:
    """Run two functions, undo what they change, and compare their results and what they leave in the buffers.

    Args:
        first: of the inputs.
        second: likewise.
        inputs: at least one; the random streams of its device are restored.
        surroundings: the objects that the functions may change.
        tolerance: relative difference that rounding may make.

    Raises:
        GraphError: as `undo_effects`.
    """
    outputs = []
    for function in (first, second):
        with fork_rng(inputs[0]), pyro.validation_enabled(False), undo_effects(surroundings), torch.no_grad():
            results = function(*inputs)
            outputs.append((*results, *(buffer.clone() for buffer in surroundings.buffers())))
    return len(outputs[0]) == len(outputs[1]) and agree(list(zip(*outputs, strict=True)), tolerance)


def agree(pairs: Sequence[tuple[Tensor | None, Tensor | None]], tolerance: float) -> bool:
    """Whether tensors are equal up to rounding.

    Each difference is relative to the largest entry of its tensor, to which a thousandth of the largest entry of all
    tensors is added: a gradient that ought to be zero is a sum of terms that cancel, and keeps their rounding.
    """
    if any((a is None) != (b is None) or (a is not None and a.shape != b.shape) for a, b in pairs):  # type: ignore[union-attr]
        return False
    differing = [(a.double(), b.double()) for a, b in pairs if a is not None and b is not None and a.numel()]
    differing = [(a.nan_to_num(0.0), b.nan_to_num(0.0)) for a, b in differing if not torch.equal(a, b)]
    largest = max((float(a.abs().max()) for a, _ in differing), default=0.0)
    return all(float((a - b).abs().max()) <= tolerance * (float(a.abs().max()) + 1e-3 * largest) for a, b in differing)
