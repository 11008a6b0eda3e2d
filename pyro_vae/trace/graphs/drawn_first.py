r"""Compile a graph with its random operations outside of it, because compilers change their order.

Random operations share the state of a generator, which is not among their arguments. TorchInductor of torch 2.11 orders
them by their other arguments and by memory, so that each gets numbers that eager execution would give to another one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx import GraphModule

from pyro_vae.trace.graphs.fx import GraphError, Tensors, compile_graph
from pyro_vae.trace.graphs.pure import PureGraph
from pyro_vae.trace.seeds import global_generator


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

    def empty() -> list[Tensor]:
        return [torch.empty(noise.shape, dtype=noise.dtype, device=noise.device) for noise in pure.noise]

    compiled = compile_graph(pure.module, [*inputs, *empty()])

    def run(*arguments: Tensor) -> Tensors:
        drawn = empty()
        for out, noise in zip(drawn, pure.noise, strict=True):
            noise.draw(out, global_generator(noise.device))
        results = iter(compiled(*arguments, *drawn))
        return tuple(next(results) if there else None for there in pure.found)

    return run
