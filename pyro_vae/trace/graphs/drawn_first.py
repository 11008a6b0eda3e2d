r"""Compile a graph with its random operations outside of it, because compilers change their order.

Random operations share the state of a generator, which is not among their arguments. TorchInductor of torch 2.11 orders
them by their other arguments and by memory, so that each gets numbers that eager execution would give to another one.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.fx import GraphModule

from pyro_vae.trace.graphs.fx import GraphError, Tensors, compile_graph
from pyro_vae.trace.graphs.pure import PureGraph


def compile_with_noise_first(record: GraphModule, inputs: list[Tensor]) -> Callable[..., Tensors]:
    """Compile a graph that draws its noise before it runs, in the order of the record.

    A graph with at most one random operation, or with noise that depends on computed values, is compiled unchanged. In
    the second case the comparison of `Graph` reveals another order.

    Args:
        record: Recorded graph.
        inputs: Inputs and external tensors of these shapes.
    """
    try:
        pure = PureGraph.of(record)
    except GraphError:
        return compile_graph(record, inputs)
    if len(pure.noise) < 2:
        return compile_graph(record, inputs)
    compiled = compile_graph(pure.module, [*inputs, *(noise.empty() for noise in pure.noise)])
    return lambda *arguments: pure.results(compiled(*arguments, *pure.draw()))  # type: ignore[arg-type]  # no None
