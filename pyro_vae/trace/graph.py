r"""A function that runs programs, as one compiled graph of tensor operations.

Effect handlers, distributions and autograd run once, while the operations they issue are recorded; the record is
compiled and takes their place. Every tensor that it reads from outside (parameters, buffers, a tensor that anneals
beta, the images) stays an input, read anew at each call. What Python decides is frozen: a call with other shapes,
modules in another mode or parameters that have been frozen gets a record of its own.

Random numbers are drawn from torch's own streams, so that the graph draws what the function would have drawn.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg

from pyro_vae.trace.reading import Program, fork_rng, modules

Tensors = tuple[Tensor | None, ...]


class GraphError(RuntimeError):
    """A function that cannot become a graph; says why in one line."""


class Graph:
    """A function of tensors that runs programs, compiled at its first call for each shape.

    Args:
        function: of tensors; returns what Python knows, such as the names of sites, and a tuple of tensors, or None.
        programs: those it runs, whose modules' modes are watched.
    """

    def __init__(self, function: Callable[..., tuple[Any, Tensors]], *programs: Program) -> None:
        self.function = function
        self.roots = list(dict.fromkeys(root for program in programs for root in modules(program)))
        self._records: dict[Any, _Record] = {}

    def __call__(self, *inputs: Tensor) -> tuple[Any, Tensors]:
        """Run the graph on tensors that carry no gradient; neither do the results.

        Returns:
            What Python knew when the graph was recorded, and the tensors.

        Raises:
            GraphError: the function cannot be recorded, or there is no compiler for the record.
        """
        key = self._key(inputs)
        if key not in self._records:
            with fork_rng(inputs[0]), pyro.validation_enabled(False):
                self._records[key] = self._record(inputs)
        record = self._records[key]
        with torch.no_grad():
            return record.known, record.run(*inputs, *(tensor.detach() for tensor in record.outside))

    def _key(self, inputs: tuple[Tensor, ...]) -> Any:
        parts = tuple((id(part), part.training) for root in self.roots for part in root.modules())
        tensors = (t for root in self.roots for t in chain(root.parameters(), root.buffers()))
        return (
            parts,
            tuple((id(tensor), tensor.requires_grad) for tensor in tensors),
            tuple((x.shape, x.dtype, x.device) for x in inputs),
        )

    def _record(self, inputs: tuple[Tensor, ...]) -> _Record:
        buffers = [(buffer, buffer.clone()) for root in self.roots for buffer in root.buffers()]
        streams = random.getstate(), np.random.get_state()
        known: Any = None

        def tensors(*inputs: Tensor) -> Tensors:
            nonlocal known
            known, found = self.function(*inputs)
            return found

        try:
            tensors(*inputs)  # what is done once (the probe of the layout, a cache) is not part of the record
            graph = make_fx(tensors)(*inputs)
        except Exception as error:
            raise GraphError(_reason("it cannot be traced", error)) from error
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
        if repr(streams) != repr((random.getstate(), np.random.get_state())):
            random.setstate(streams[0])
            np.random.set_state(streams[1])
            raise GraphError("it draws random numbers from NumPy or Python, which a graph would freeze")
        _freeze_places(graph)
        outside = _lift(graph)
        try:
            run = compiled(graph, [*inputs, *(tensor.detach() for tensor in outside)])
        except Exception as error:
            raise GraphError(_reason("its graph cannot be compiled", error)) from error
        return _Record(known, run, outside)


class _Record(NamedTuple):
    known: Any
    run: Callable[..., Tensors]
    outside: list[Tensor]


def compiled(record: GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Tensors]:
    """Compile a record for inputs of these shapes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler about itself
        # With inductor's own generator, the draws would not be those of the eager function.
        return torch._inductor.compile(record, list(inputs), options={"fallback_random": True})


def _freeze_places(record: GraphModule) -> None:
    """Compute where a mask of the program is true (the halves of a coupling flow), which decides shapes."""
    for number, node in enumerate(list(record.graph.nodes)):
        if node.target is torch.ops.aten.nonzero.default:
            name = f"places_{number}"
            record.register_buffer(name, _value(record, node))
            with record.graph.inserting_before(node):
                node.replace_all_uses_with(record.graph.get_attr(name))
    record.graph.eliminate_dead_code()


def _value(record: GraphModule, node: Node) -> Any:
    """Return the value of a node that depends on no input."""
    if node.op == "get_attr":
        return getattr(record, str(node.target))
    if node.op == "placeholder":
        raise GraphError("its shapes depend on the images")
    assert callable(node.target)
    args, kwargs = map_arg((node.args, node.kwargs), lambda n: _value(record, n))
    return node.target(*args, **kwargs)


def _lift(record: GraphModule) -> list[Tensor]:
    """Make inputs of the tensors that a record reads from outside, and return these."""
    graph = record.graph
    behind = [node for node in graph.nodes if node.op == "placeholder"][-1]
    places: dict[int, Any] = {}
    outside: list[Tensor] = []
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        tensor = getattr(record, node.target)
        if id(tensor) not in places:
            with graph.inserting_after(behind):
                behind = places[id(tensor)] = graph.placeholder(f"outside_{len(outside)}")
            outside.append(tensor)
        node.replace_all_uses_with(places[id(tensor)])
        graph.erase_node(node)
    record.recompile()
    return outside


def _reason(what: str, error: Exception) -> str:
    first = next(iter(str(error).splitlines()), "")
    return f"{what} ({type(error).__name__}: {first[:200]})"
