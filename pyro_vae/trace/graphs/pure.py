r"""A recorded graph as a function without random operations: its noise is an input, and its side effects are known."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from pyro_vae.trace.graphs.fx import GraphError, Tensors
from pyro_vae.trace.graphs.record import Record
from pyro_vae.trace.seeds import global_generator

_aten = torch.ops.aten
_FRESH = {_aten.empty.memory_format, _aten.new_empty.default, _aten.empty_like.default}
# Operations whose noise depends on shapes and numbers only, and the tensor methods that draw the same values.
_NEW = {
    _aten.rand.default: "uniform_",
    _aten.rand.generator: "uniform_",
    _aten.rand_like.default: "uniform_",
    _aten.randn.default: "normal_",
    _aten.randn.generator: "normal_",
    _aten.randn_like.default: "normal_",
}
_IN_PLACE = {
    _aten.uniform_.default: "uniform_",
    _aten.normal_.default: "normal_",
    _aten.exponential_.default: "exponential_",
    _aten.bernoulli_.float: "bernoulli_",
}
# Arguments that batch normalization writes to, although its schemas do not declare it.
_STATISTICS = {"running_mean", "running_var"}


class Noise(NamedTuple):
    """A random operation of a graph: the in-place tensor method that draws it, its arguments, and the tensor's form."""

    method: str
    numbers: tuple[float, ...]
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    def empty(self) -> Tensor:
        """Return a tensor of this form, whose values are arbitrary."""
        return torch.empty(self.shape, dtype=self.dtype, device=self.device)

    def draw(self, out: Tensor, generator: torch.Generator) -> None:
        """Draw into a contiguous tensor of this form, in place."""
        getattr(out, self.method)(*self.numbers, generator=generator)


class PureGraph(NamedTuple):
    """A recorded graph without random operations.

    Attributes:
        module: Takes the inputs of the graph, its external tensors and one tensor for each of `noise`; returns those
            results that are not None.
        noise: The random operations, in the order of the graph.
        found: Whether each result is a tensor; the others are None.
        written: Positions of the arguments that the graph may write to.
    """

    module: GraphModule
    noise: list[Noise]
    found: list[bool]
    written: set[int]

    def draw(self) -> list[Tensor]:
        """Draw all noise from torch's generators, in the order of the graph."""
        drawn = [noise.empty() for noise in self.noise]
        for out, noise in zip(drawn, self.noise, strict=True):
            noise.draw(out, global_generator(noise.device))
        return drawn

    def results(self, outputs: Iterable[Tensor]) -> Tensors:
        """Return the results of the record, given those of `module`."""
        remaining = iter(outputs)
        return tuple(next(remaining) if there else None for there in self.found)

    @classmethod
    def of(cls, record: GraphModule) -> PureGraph:
        """Return this form of a recorded graph, which is not changed.

        Raises:
            GraphError: If the noise depends on computed values, or comes from a generator of the program.
        """
        graph = deepcopy(record.graph)
        for node in graph.find_nodes(op="call_function", target=_aten.lift_fresh_copy.default):
            node.target = _aten.clone.default  # the same, with a batched form
        noise = [_lift(graph, node) for node in list(graph.nodes) if _is_random(node)]
        (output,) = (node for node in graph.nodes if node.op == "output")
        found = [isinstance(value, Node) for value in output.args[0]]
        output.args = (tuple(value for value in output.args[0] if isinstance(value, Node)),)
        written = written_inputs(graph)
        return cls(GraphModule(record, graph), noise, found, written)


def _is_random(node: Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _lift(graph: Graph, node: Node) -> Noise:
    """Replace a random operation by an input."""
    value, target = node.meta["val"], node.target
    method, dtype = "uniform_", value.dtype
    numbers: tuple[Any, ...] = ()
    fresh = None
    if target in _NEW:
        method = _NEW[target]
    elif target in _IN_PLACE and not any(isinstance(number, Node) for number in node.args[1:]):
        fresh, *rest = node.args
        method, numbers = _IN_PLACE[target], tuple(rest)
        if not isinstance(fresh, Node) or fresh.target not in _FRESH or len(fresh.users) > 1:
            raise GraphError(f"it draws into a tensor with other uses ({target})")
    elif target is _aten.bernoulli.default:  # True where a uniform number is below the probability
        dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    else:
        raise GraphError(f"it draws by {target}, whose noise depends on computed values")
    if node.kwargs.get("generator") is not None or not value.is_contiguous():
        raise GraphError(f"it draws by {target} from its own generator or into a non-contiguous tensor")
    drawn = _new_input(graph, node)
    if target is _aten.bernoulli.default:
        with graph.inserting_before(node):
            below = graph.call_function(_aten.lt.Tensor, (drawn, node.args[0]))
            drawn = graph.call_function(_aten._to_copy.default, (below,), {"dtype": value.dtype})
    node.replace_all_uses_with(drawn)
    graph.erase_node(node)
    if isinstance(fresh, Node):
        graph.erase_node(fresh)
    return Noise(method, numbers, value.shape, dtype, value.device)


def _new_input(graph: Graph, node: Node) -> Node:
    last = [each for each in graph.nodes if each.op == "placeholder"][-1]
    with graph.inserting_after(last):
        return graph.placeholder(f"noise_of_{node.name}")


def written_inputs(graph: Graph) -> set[int]:
    """Return the positions of the arguments that a graph may write to."""
    positions = {node: position for position, node in enumerate(graph.find_nodes(op="placeholder"))}
    written: set[Node] = set()
    for node in graph.nodes:
        if isinstance(node.target, OpOverload):
            arguments = node.target._schema.arguments
            values = {**dict(zip((a.name for a in arguments), node.args, strict=False)), **node.kwargs}
            for argument in arguments:
                writes = argument.alias_info is not None and argument.alias_info.is_write
                if (writes or argument.name in _STATISTICS) and argument.name in values:
                    map_arg(values[argument.name], lambda n: written.update([_source(n)]))
    return {positions[node] for node in written if node in positions}


def _source(node: Node) -> Node:
    """Return the node that owns the memory of a node."""
    while node.op == "call_function" and node.all_input_nodes:
        schema: Any = getattr(node.target, "_schema", None)
        aliases = schema is not None and any(result.alias_info is not None for result in schema.returns)
        if not aliases and node.target is not operator.getitem:
            break
        node = node.all_input_nodes[0]
    return node


def check_alike(records: Sequence[Record]) -> None:
    """Raise GraphError if records differ in more than the values of their external tensors."""
    modules: list[Any] = [record.run for record in records]
    first = modules[0]
    if any(module.code != first.code for module in modules):
        raise GraphError("the operations, the shapes or numbers in Python of the fits differ")
    for node in first.graph.find_nodes(op="get_attr"):
        held = [getattr(module, node.target) for module in modules]
        if not all(torch.equal(tensor, held[0]) for tensor in held):
            raise GraphError("masks of the fits differ")
