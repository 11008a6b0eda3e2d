"""Recorded graphs of functions: memory layouts, and functions that cannot be recorded."""

from __future__ import annotations

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
