r"""A step on a CUDA device as one CUDA graph: launched whole, where launching kernel by kernel would take longer than
the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Calls that run as they are before one is captured: what libraries set up at first use must not be in a CUDA graph.
_WARM_UP_CALLS = 3

Outputs = tuple[Tensor, ...]


class CUDAGraphCall:
    """A function of tensors of fixed shapes, captured at its fourth call and replayed from then on.

    Every call does what the function does, once: those before the capture run it on a side stream, as capture asks for.

    Args:
        function: reads and writes nothing but tensors that stay where they are, and does not wait for the device;
            returns None where it has done nothing and the caller has to.
        key: what Python decides by; where it changes, the capture starts anew.
    """

    def __init__(self, function: Callable[..., Outputs | None], key: Callable[..., Any]) -> None:
        self.function, self.key = function, key
        self._calls = 0
        self._held: Any = None
        self._inputs: Outputs = ()
        self._outputs: Outputs = ()
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> Outputs | None:
        """Call the function; the results are the caller's own."""
        key = self.key(*inputs)
        if key != self._held:
            self._held, self._calls, self._graph = key, 0, None
        self._calls += 1
        if self._graph is None and self._calls <= _WARM_UP_CALLS:
            return self._warm_up(*inputs)
        if self._graph is None:
            self._inputs = tuple(tensor.clone() for tensor in inputs)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                outputs = self.function(*self._inputs)
            assert outputs is not None  # the calls before, of the same key, were not left to the caller
            self._graph, self._outputs = graph, outputs
        for held_input, tensor in zip(self._inputs, inputs, strict=True):
            held_input.copy_(tensor)
        self._graph.replay()
        return tuple(tensor.clone() for tensor in self._outputs)

    def _warm_up(self, *inputs: Tensor) -> Outputs | None:
        present, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(present)
        with torch.cuda.stream(side):
            outputs = self.function(*inputs)
        present.wait_stream(side)
        if outputs is None:
            self._calls = 0
        return outputs
