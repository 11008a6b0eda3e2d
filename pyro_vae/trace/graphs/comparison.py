r"""Compare two functions on the same inputs and the same noise; compile a graph and compare it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pyro
import torch
from torch import Tensor
from torch.fx import GraphModule

from pyro_vae.errors import is_out_of_memory
from pyro_vae.trace.graphs.drawn_first import compile_with_noise_first
from pyro_vae.trace.graphs.effects import undo_effects
from pyro_vae.trace.graphs.fx import Tensors, in_one_line
from pyro_vae.trace.graphs.surroundings import Surroundings
from pyro_vae.trace.isolation import fork_rng

_LOG = logging.getLogger("pyro_vae")

# A graph has the function's operations in the same order. A compiler adds rounding errors, which long sums amplify.
TOLERANCE = 1e-4


@contextmanager
def without_effects(x: Tensor, surroundings: Surroundings) -> Iterator[None]:
    """Disable gradients, and undo draws and changes to the surroundings; `x` is a tensor on the device of the draws.

    Raises:
        GraphError: If there are side effects that a graph would not repeat, see `undo_effects`.
    """
    with fork_rng(x), pyro.validation_enabled(False), undo_effects(surroundings), torch.no_grad():
        yield


def same_results(
    first: Callable[..., Tensors],
    second: Callable[..., Tensors],
    inputs: tuple[Tensor, ...],
    surroundings: Surroundings,
    tolerance: float,
) -> bool:
    """Return whether two functions agree in their results and in the buffers that they leave.

    Both run without gradients and from the same state of the random generators. Their side effects are undone.

    Args:
        first: Function of `inputs` that returns tensors.
        second: Function that is compared with `first`.
        inputs: At least one tensor; the random generators of its device are restored afterwards.
        surroundings: Python objects that the functions may modify.
        tolerance: Largest difference attributed to rounding, relative to the largest entry of each tensor.

    Raises:
        GraphError: If a function has side effects that a graph would not repeat, see `undo_effects`.
    """
    outputs = []
    for function in (first, second):
        with without_effects(inputs[0], surroundings):
            results = function(*inputs)
            outputs.append((*results, *(buffer.clone() for buffer in surroundings.buffers())))
    return len(outputs[0]) == len(outputs[1]) and agree(list(zip(*outputs, strict=True)), tolerance)


def compile_checked(
    graph: GraphModule,
    inputs: tuple[Tensor, ...],
    outside: list[Tensor],
    expected: Callable[..., Tensors],
    surroundings: Surroundings,
    tolerance: float,
) -> Callable[..., Tensors] | None:
    """Compile a graph and compare its results with the expected ones, because compilers have bugs.

    Args:
        graph: Function of the inputs and of the external tensors.
        inputs: At least one tensor.
        outside: External tensors. The comparison changes those that the graph writes to, except buffers.
        expected: Function of the inputs with the results of the graph.
        surroundings: As in `same_results`.
        tolerance: As in `same_results`.

    Returns:
        The compiled graph, or None, with a warning, if the compiler fails or the results differ.
    """

    def compiled(*inputs: Tensor) -> Tensors:
        return run(*inputs, *outside)

    try:
        run = compile_with_noise_first(graph, [*inputs, *(tensor.detach() for tensor in outside)])
        if not same_results(expected, compiled, inputs, surroundings, tolerance):
            raise RuntimeError("the compiled graph gives different results")
    except Exception as error:  # compilers may raise anything
        if is_out_of_memory(error):
            raise
        _LOG.warning("Not compiled (%s): recorded operations run one by one.", in_one_line(error))
        return None
    return run


def agree(pairs: Sequence[tuple[Tensor | None, Tensor | None]], tolerance: float) -> bool:
    """Return whether paired tensors are equal up to rounding.

    The difference of a pair is relative to the largest entry of its first tensor plus 1e-3 times the largest entry of
    all tensors that differ. The second term covers gradients that should be zero: they are sums of terms that cancel,
    and retain the rounding errors of these terms.
    """
    if any((a is None) != (b is None) or (a is not None and a.shape != b.shape) for a, b in pairs):  # type: ignore[union-attr]
        return False
    unequal = [(a.double(), b.double()) for a, b in pairs if a is not None and b is not None and not torch.equal(a, b)]
    for a, b in unequal:  # NaN and infinities have no relative difference, and must be at the same indices
        if any(not torch.equal(test(a), test(b)) for test in (torch.isnan, torch.isposinf, torch.isneginf)):
            return False
    unequal = [(a.where(a.isfinite(), 0.0), b.where(b.isfinite(), 0.0)) for a, b in unequal]
    largest = max((float(a.abs().max()) for a, _ in unequal), default=0.0)
    return all(float((a - b).abs().max()) <= tolerance * (float(a.abs().max()) + 1e-3 * largest) for a, b in unequal)
