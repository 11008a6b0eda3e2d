"""Recorded graphs of functions: memory layouts, and functions that cannot be recorded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pyro_vae.trace import Graph, GraphError


def test_shapes_that_depend_on_the_images_are_rejected() -> None:
    with pytest.raises(GraphError, match="shapes depend on the images"):
        Graph(lambda x: (None, (x.nonzero().sum(),)))(torch.randn(5))


def test_inputs_may_have_any_memory_layout() -> None:
    """Compiled for one memory layout, called with a transposed and an expanded tensor."""
    compiled = Graph(lambda x: (None, ((x * torch.arange(4.0)).sum(1).exp(),)))
    for x in (torch.randn(3, 4), torch.randn(4, 3).mT, torch.randn(1, 4).expand(3, 4), torch.randn(3, 8)[:, ::2]):
        torch.testing.assert_close(compiled(x)[1][0], (x * torch.arange(4.0)).sum(1).exp())
    assert len(compiled._records) == 1


@pytest.mark.parametrize("compiled", [False, True])
def test_out_of_memory_is_not_reported_as_unrecordable(compiled: bool) -> None:
    def function(x: Tensor) -> tuple[None, tuple[Tensor, ...]]:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        Graph(function, compiled=compiled)(torch.ones(3))


@pytest.mark.slow
def test_compiled_graph_is_kept_for_the_next_process(tmp_path: Path) -> None:
    """A second process with the same folder of the compiler compiles nothing, and its numbers are the same."""
    code = """
import torch
from torch._dynamo.utils import counters
from pyro_vae.trace import Graph
weight = torch.linspace(-1, 1, 12).view(3, 4)
graph = Graph(lambda x: (None, ((x @ weight).tanh().sum(0) + torch.arange(4),)), object())
(result,) = graph(torch.linspace(0, 1, 15).view(5, 3))[1]
print(counters["inductor"]["fxgraph_cache_hit"], result.tolist())
"""
    folder = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    calls = [
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | folder, capture_output=True, text=True, check=True
        )
        for _ in range(2)
    ]
    (first, *expected), (second, *found) = (call.stdout.split(maxsplit=1) for call in calls)
    assert (first, second) == ("0", "1")
    assert found == expected
