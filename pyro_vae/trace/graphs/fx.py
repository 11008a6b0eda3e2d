r"""What is done to a record of tensor operations before it takes the place of the function that issued them."""

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
    """A function that cannot become a graph; says why in one line."""


def compile_graph(record: GraphModule, inputs: list[Tensor]) -> Callable[..., Tensors]:
    """Compile a record for inputs of these shapes."""
    from torch import _inductor  # a second of imports, which a run that is not compiled does without

    log = logging.getLogger("torch.utils.cpp_extension")  # has a line about devices that a CPU has no use for
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler about itself
            # With inductor's own generator, the draws would not be those of the eager function.
            return _inductor.compile(record, list(inputs), options={"fallback_random": True})
    finally:
        log.setLevel(level)


def constant_fold_masks(record: GraphModule) -> list[Tensor]:
    """Compute where a mask of the program is true (the halves of a coupling flow), which decides shapes.

    Returns:
        The tensors that the masks are made of, which must stay as they are.

    Raises:
        GraphError: the mask depends on the images or on what is drawn.
    """
    read: dict[int, Tensor] = {}
    for position, node in enumerate(list(record.graph.nodes)):
        if node.target is torch.ops.aten.index.Tensor:  # by a mask the record has the number of its true entries
            for index in node.args[1]:
                if index is not None and index.meta["val"].dtype in (torch.bool, torch.uint8):
                    _value(record, index, read)
        if node.target is torch.ops.aten.nonzero.default:
            name = f"places_{position}"
            record.register_buffer(name, _value(record, node, read))
            with record.graph.inserting_before(node):
                node.replace_all_uses_with(record.graph.get_attr(name))
    record.graph.eliminate_dead_code()
    return list(read.values())


def _value(record: GraphModule, node: Node, read: dict[int, Tensor]) -> Any:
    """Return the value of a node that depends on no input, and note the tensors that it is made of."""
    if node.op == "get_attr":
        value = getattr(record, str(node.target))
        if isinstance(value, Tensor):
            read[id(value)] = value
        return value
    if node.op == "placeholder":
        raise GraphError("its shapes depend on the images")
    assert callable(node.target)
    if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
        raise GraphError("its shapes depend on what is drawn")
    args, kwargs = map_arg((node.args, node.kwargs), lambda n: _value(record, n, read))
    return node.target(*args, **kwargs)


def lift_constants(record: GraphModule) -> list[Tensor]:
    """Make inputs of the tensors that a record reads from outside, and return these.

    Raises:
        GraphError: it reads something else than tensors, or a parameter with a gradient hook.
    """
    graph = record.graph
    last_input = [node for node in graph.nodes if node.op == "placeholder"][-1]
    inputs: dict[int, Any] = {}
    outside: list[Tensor] = []
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        tensor = getattr(record, node.target)
        if not isinstance(tensor, Tensor):
            raise GraphError(f"it uses a {type(tensor).__name__}, which is no tensor")
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
    """Return the type of an error and the first line of what it says."""
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first[:200]}"
