r"""Capture a step on a CUDA device as one CUDA graph.

Python launches the kernels of a small network more slowly than the device runs them; a CUDA graph launches them all at
once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Calls before capture, in which libraries complete their lazy initialization: it must not be captured.
_WARM_UP_CALLS = 3

Outputs = tuple[Tensor, ...]


class CUDAGraphCall:
    """A function of tensors of fixed shapes, captured at its fourth call and replayed afterwards.

    Every call has the effect of exactly one call of the function. The calls before capture run it on a side stream, as
    CUDA requires.

    Args:
        function: Function that reads and writes only tensors that keep their memory, and does not synchronize with the
            device. It returns None if it has done nothing and the caller has to take the step.
        key: Function of the inputs that returns everything that Python control flow depends on. If the key changes, the
            function is captured again after new warm-up calls.
    """

    def __init__(self, function: Callable[..., Outputs | None], key: Callable[..., Any]) -> None:
        self.function, self.key = function, key
        self._calls = 0
        self._captured_key: Any = None
        self._inputs: Outputs = ()
        self._outputs: Outputs = ()
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> Outputs | None:
        """Call the function or replay its graph; later calls do not overwrite the tensors returned."""
        key = self.key(*inputs)
        if key != self._captured_key:
            self._captured_key, self._calls, self._graph = key, 0, None
        self._calls += 1
        if self._graph is None and self._calls <= _WARM_UP_CALLS:
            return self._warm_up(*inputs)
        if self._graph is None:
            self._inputs = tuple(tensor.clone() for tensor in inputs)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                outputs = self.function(*self._inputs)
            assert outputs is not None  # the warm-up calls with this key returned tensors
            self._graph, self._outputs = graph, outputs  # capture has run no kernel: the replay takes this step
        # The graph reads its inputs from, and writes its outputs to, the memory that was in use at capture.
        for static_input, tensor in zip(self._inputs, inputs, strict=True):
            static_input.copy_(tensor)
        self._graph.replay()
        return tuple(tensor.clone() for tensor in self._outputs)

    def _warm_up(self, *inputs: Tensor) -> Outputs | None:
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            outputs = self.function(*inputs)
        current.wait_stream(side)
        if outputs is None:
            self._calls = 0
        return outputs
