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
_NATS = 1e-3  # difference of a log-density attributed to rounding, in nats
NO_NATS = slice(0)


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
    in_nats: slice = NO_NATS,
) -> bool:
    """Return whether two functions agree in their results and in the buffers that they leave.

    Both run without gradients and from the same state of the random generators. Their side effects are undone.

    Args:
        first: Function of `inputs` that returns tensors.
        second: Function that is compared with `first`.
        inputs: At least one tensor; the random generators of its device are restored afterwards.
        surroundings: Python objects that the functions may modify.
        tolerance: Largest relative difference attributed to rounding, see `agree`.
        in_nats: Places of the results that are log-densities, see `agree`.

    Raises:
        GraphError: If a function has side effects that a graph would not repeat, see `undo_effects`.
    """
    results, buffers = [], []
    for function in (first, second):
        with without_effects(inputs[0], surroundings):
            results.append(function(*inputs))
            buffers.append([buffer.clone() for buffer in surroundings.buffers()])
    if any(len(first_side) != len(second_side) for first_side, second_side in (results, buffers)):
        return False
    pairs = [list(zip(*sides, strict=True)) for sides in (results, buffers)]
    return agree(pairs[0], tolerance, in_nats) and agree(pairs[1], tolerance)


def compile_checked(
    graph: GraphModule,
    inputs: tuple[Tensor, ...],
    outside: list[Tensor],
    expected: Callable[..., Tensors],
    surroundings: Surroundings,
    tolerance: float,
    in_nats: slice = NO_NATS,
) -> Callable[..., Tensors] | None:
    """Compile a graph and compare its results with the expected ones, because compilers have bugs.

    Args:
        graph: Function of the inputs and of the external tensors.
        inputs: At least one tensor.
        outside: External tensors. The comparison changes those that the graph writes to, except buffers.
        expected: Function of the inputs with the results of the graph.
        surroundings: As in `same_results`.
        tolerance: As in `same_results`.
        in_nats: As in `same_results`.

    Returns:
        The compiled graph, or None, with a warning, if the compiler fails or the results differ.
    """

    def agrees(run: Callable[..., Tensors]) -> bool:
        def compiled(*inputs: Tensor) -> Tensors:
            return run(*inputs, *outside)

        return same_results(expected, compiled, inputs, surroundings, tolerance, in_nats)

    arguments = [*inputs, *(tensor.detach() for tensor in outside)]
    return compile_if_right(lambda: compile_with_noise_first(graph, arguments), agrees)


def compile_if_right(
    compiled: Callable[[], Callable[..., Tensors]], agrees: Callable[[Callable[..., Tensors]], bool]
) -> Callable[..., Tensors] | None:
    """Return a compiled graph; None, with a warning, if the compiler fails or its results are wrong.

    Args:
        compiled: Function that compiles the graph.
        agrees: Function of the compiled graph that returns whether its results are right.
    """
    try:
        run = compiled()
        if not agrees(run):
            raise RuntimeError("the compiled graph gives different results")
    except Exception as error:  # compilers may raise anything
        if is_out_of_memory(error):
            raise
        _LOG.warning("Not compiled (%s): recorded operations run one by one.", in_one_line(error))
        return None
    return run


def agree(pairs: Sequence[tuple[Tensor | None, Tensor | None]], tolerance: float, in_nats: slice = NO_NATS) -> bool:
    """Return whether paired tensors are equal up to rounding.

    The difference of a pair is small relative to its first tensor, both by the largest entry, which shows a single
    wrong entry, and by the Euclidean norm, which shows errors of many small entries beside a large one. To the size of
    the first tensor, 1e-3 times the size of the largest of all tensors that differ is added. It covers gradients that
    should be zero: they are sums of terms that cancel, and retain the rounding errors of these terms.

    Log-densities are used as differences, in which their size cancels. Every entry a must therefore agree to 1e-3 nats
    plus `tolerance` / 10 times |a|, the rounding error of a long sum.

    Args:
        pairs: Pairs of tensors, or of None.
        tolerance: Largest relative difference.
        in_nats: Places of the pairs that are log-densities.
    """
    if any((a is None) != (b is None) or (a is not None and a.shape != b.shape) for a, b in pairs):  # type: ignore[union-attr]
        return False
    densities = range(len(pairs))[in_nats]
    unequal = [
        (a.double(), b.double(), place in densities)
        for place, (a, b) in enumerate(pairs)
        if a is not None and b is not None and not torch.equal(a, b)
    ]
    for a, b, _ in unequal:  # NaN and infinities have no relative difference, and must be at the same indices
        if any(not torch.equal(test(a), test(b)) for test in (torch.isnan, torch.isposinf, torch.isneginf)):
            return False
    finite = [(a.where(a.isfinite(), 0.0), b.where(b.isfinite(), 0.0), nats) for a, b, nats in unequal]
    if any(nats and ((a - b).abs() > _NATS + tolerance / 10 * a.abs()).any() for a, b, nats in finite):
        return False
    for order in (2, torch.inf):
        sizes = [(_norm(a, order), _norm(a - b, order)) for a, b, _ in finite]
        largest = max((size for size, _ in sizes), default=0.0)
        if any(difference > tolerance * (size + 1e-3 * largest) for size, difference in sizes):
            return False
    return True


def _norm(tensor: Tensor, order: float) -> float:
    return float(torch.linalg.vector_norm(tensor, order))
