r"""Capture a function of tensors on a CUDA device as one CUDA graph.

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
        part: Function that returns the captured call of which `function` repeats the work, if it repeats one. It then
            needs no warm-up calls, and its intermediate results share the memory of that call.
    """

    def __init__(
        self,
        function: Callable[..., Outputs | None],
        key: Callable[..., Any],
        part: Callable[[], CUDAGraphCall | None] | None = None,
    ) -> None:
        self.function, self.key, self.part = function, key, part
        self.graph: torch.cuda.CUDAGraph | None = None
        self._calls = 0
        self._captured_key: Any = None
        self._inputs: Outputs = ()
        self._outputs: Outputs = ()

    def is_captured(self, *inputs: Tensor) -> bool:
        """Return whether a call with these inputs would only replay the graph."""
        return self.graph is not None and self.key(*inputs) == self._captured_key

    def __call__(self, *inputs: Tensor) -> Outputs | None:
        """Call the function or replay its graph; later calls do not overwrite the tensors returned.

        The first input is on the device. Others that are on the host are copied there, without waiting for it.
        """
        key = self.key(*inputs)
        if key != self._captured_key:
            self._captured_key, self._calls, self.graph = key, 0, None
        self._calls += 1
        if self.graph is None and self._calls <= _WARM_UP_CALLS and self.part is None:
            return self._warm_up(*inputs)
        if self.graph is None:
            self._inputs = tuple(torch.empty_like(tensor, device=inputs[0].device) for tensor in inputs)
        # The graph reads its inputs from, and writes its outputs to, the memory that was in use at capture. From the
        # pageable memory of the host, a copy that does not block has read its source when it returns.
        for static_input, tensor in zip(self._inputs, inputs, strict=True):
            static_input.copy_(tensor, non_blocking=True)
        graph = self.graph or self._capture()  # capture has run no kernel: the replay takes this step
        graph.replay()
        return tuple(tensor.clone() for tensor in self._outputs)

    def _capture(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        part = self.part and self.part()
        # Graphs may share memory if no two of them run at once and none reads what another has left in it: outputs are
        # copied after each replay.
        with torch.cuda.graph(graph, pool=part.graph.pool() if part and part.graph else None):
            outputs = self.function(*self._inputs)
        assert outputs is not None  # the warm-up calls with this key returned tensors
        self.graph, self._outputs = graph, outputs
        return graph

    def _warm_up(self, *inputs: Tensor) -> Outputs | None:
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            outputs = self.function(*inputs)
        current.wait_stream(side)
        if outputs is None:
            self._calls = 0
        return outputs
