r"""Compile and post-process recorded FX graphs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

Tensors = tuple[Tensor | None, ...]


class GraphError(RuntimeError):
    """Raised if a function cannot be recorded as a graph; the message gives the reason in one line."""


def compile_graph(record: GraphModule, inputs: list[Tensor]) -> Callable[..., Tensors]:
    """Compile a graph with TorchInductor for inputs of these shapes."""
    from torch import _inductor  # slow imports, only needed here
    from torch._guards import TracingContext, tracing
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    log = logging.getLogger("torch.utils.cpp_extension")  # logs a line about devices, irrelevant on CPU
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # internal to the compiler
            # Inductor keeps its results on disk for the next process only if it is told that all shapes are static.
            mode = FakeTensorMode(shape_env=ShapeEnv())
            shapes: list[Any] = [mode.from_tensor(tensor, static_shapes=True) for tensor in inputs]
            with tracing(TracingContext(mode)):
                # Inductor's default generator would not reproduce the draws of the eager function.
                return _inductor.compile(record, shapes, options={"fallback_random": True})
    finally:
        log.setLevel(level)


def constant_fold_masks(record: GraphModule) -> list[Tensor]:
    """Evaluate `nonzero` of constant masks, e.g. of a coupling flow, because its result determines shapes.

    Returns:
        The tensors from which the masks are computed. The graph is valid only while their values are unchanged.

    Raises:
        GraphError: If a mask depends on the inputs or on random numbers.
    """
    sources: dict[int, Tensor] = {}
    for position, node in enumerate(list(record.graph.nodes)):
        if node.target is torch.ops.aten.index.Tensor:  # a mask freezes its number of true entries
            for index in node.args[1]:
                if index is not None and index.meta["val"].dtype in (torch.bool, torch.uint8):
                    _value(record, index, sources)
        if node.target is torch.ops.aten.nonzero.default:
            name = f"places_{position}"
            record.register_buffer(name, _value(record, node, sources))
            with record.graph.inserting_before(node):
                node.replace_all_uses_with(record.graph.get_attr(name))
    record.graph.eliminate_dead_code()
    return list(sources.values())


def _value(record: GraphModule, node: Node, sources: dict[int, Tensor]) -> Any:
    """Evaluate a node that depends on no input, and add the tensors that it reads to `sources`."""
    if node.op == "get_attr":
        value = getattr(record, str(node.target))
        if isinstance(value, Tensor):
            sources[id(value)] = value
        return value
    if node.op == "placeholder":
        raise GraphError("its shapes depend on the images")
    assert callable(node.target)
    if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
        raise GraphError("its shapes depend on random numbers")
    args, kwargs = map_arg((node.args, node.kwargs), lambda n: _value(record, n, sources))
    return node.target(*args, **kwargs)


def lift_constants(record: GraphModule) -> list[Tensor]:
    """Turn the tensors that a graph captures into additional inputs, and return these tensors.

    Raises:
        GraphError: If the graph captures an object other than a tensor, or a parameter with a gradient hook.
    """
    graph = record.graph
    last_input = [node for node in graph.nodes if node.op == "placeholder"][-1]
    inputs: dict[int, Any] = {}
    outside: list[Tensor] = []
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        tensor = getattr(record, node.target)
        if not isinstance(tensor, Tensor):
            raise GraphError(f"it uses a {type(tensor).__name__}, which is not a tensor")
        if id(tensor) not in inputs:
            with graph.inserting_after(last_input):
                last_input = inputs[id(tensor)] = graph.placeholder(f"outside_{len(outside)}")
            outside.append(tensor)
        node.replace_all_uses_with(inputs[id(tensor)])
        graph.erase_node(node)
    record.recompile()
    for tensor in outside:
        if tensor._backward_hooks or getattr(tensor, "_post_accumulate_grad_hooks", None):
            raise GraphError("a parameter has a gradient hook, which a graph would not call")
    return outside


def in_one_line(error: Exception) -> str:
    """Return the type and the first line of an error."""
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first[:200]}"
