"""Noise of a compiled graph, with a compiler that reverses independent random operations, as TorchInductor may."""

from __future__ import annotations

import logging
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from pyro_vae.trace import Graph
from pyro_vae.trace.graphs import drawn_first


def reversing(record: GraphModule, inputs: list[Tensor]) -> Callable[..., tuple[Tensor | None, ...]]:
    """Put each random operation without tensors among its arguments before those that precede it."""
    graph = deepcopy(record.graph)
    first = next(node for node in graph.nodes if node.op == "call_function")
    for node in list(graph.nodes):
        seeded = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        if seeded and not node.all_input_nodes and node is not first:
            first.prepend(node)
            first = node
    return GraphModule(record, graph)


def binarize_and_sample(x: Tensor) -> tuple[None, tuple[Tensor, ...]]:
    pixels = (torch.rand(3, 4) < 0.5).to(x.dtype)
    noise = torch.randn(3, 2)
    return None, (pixels * x, noise + torch.nn.functional.dropout(x[:, :2], 0.5))


def sample_counts(x: Tensor) -> tuple[None, tuple[Tensor, ...]]:
    counts = torch.poisson(x)  # its noise depends on x
    return None, (counts, torch.rand(3, 4), torch.randn(3, 4))


@pytest.mark.parametrize(("function", "compiles"), [(binarize_and_sample, True), (sample_counts, False)])
def test_each_random_operation_gets_the_numbers_of_eager_execution(
    function: Callable[[Tensor], tuple[None, tuple[Tensor, ...]]],
    compiles: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """To the bit; noise that depends on computed values stays in the graph, whose other order is then detected."""
    monkeypatch.setattr(drawn_first, "compile_graph", reversing)
    graph, x = Graph(function), torch.rand(3, 4) + 1
    with caplog.at_level(logging.WARNING):
        for seed in range(3):
            torch.manual_seed(seed)
            expected = function(x)[1]
            torch.manual_seed(seed)
            for found, value in zip(graph(x)[1], expected, strict=True):
                assert torch.equal(found, value)
    messages = [record.getMessage() for record in caplog.records]
    assert [("gives different results" in message) for message in messages] == ([] if compiles else [True])
