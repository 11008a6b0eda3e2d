r"""Record a function that runs programs as one FX graph of tensor operations.

Effect handlers, distributions and autograd run once, while the operations that they issue are recorded. Later calls run
the graph instead of the function, either compiled or operation by operation.

    graph inputs    every tensor that the function reads (parameters, buffers, a tensor that anneals beta, labels in an
                    attribute); each call uses its current value
    frozen          everything that Python decides; a call with different shapes, module modes, trainable parameters or
                    numbers around the program is recorded separately
    rejected        functions that change Python numbers, or read numbers off a tensor

Changes that these rules miss are found by `compare`, which runs the graph and the function on another batch with the
same noise. Random numbers come from torch's generators, so that the graph draws what the function would have drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.errors import is_out_of_memory
from pyro_vae.trace.batch import Program
from pyro_vae.trace.graphs import devices
from pyro_vae.trace.graphs.comparison import NO_NATS, TOLERANCE, compile_checked, same_results
from pyro_vae.trace.graphs.effects import undo_effects
from pyro_vae.trace.graphs.fx import (
    GraphError,
    Tensors,
    constant_fold_masks,
    in_one_line,
    lift_constants,
)
from pyro_vae.trace.graphs.leaving import refuse_host_reads
from pyro_vae.trace.graphs.record import Record
from pyro_vae.trace.graphs.surroundings import Surroundings
from pyro_vae.trace.isolation import fork_rng, stored_ids
from pyro_vae.trace.modes import ModuleRecorder

_MOST_STATES = 10  # of the surroundings; more of them mean that a value changes at every call


class Graph:
    """A function of tensors that runs programs, recorded at its first call for each shape.

    Args:
        function: Function of one or more tensors. Returns static Python values, e.g. the names of sites, and a tuple
            whose entries are tensors or None.
        programs: Programs that the function runs, and other objects whose attributes it reads. Every Python value that
            can be reached from them is watched.
        compiled: Whether to compile the graph. If that fails, e.g. without a C++ compiler, a warning is logged and the
            operations run one by one.
        tolerance: Largest relative difference attributed to rounding, see `comparison.agree`.
        in_nats: Places of the tensors that are log-densities, which are compared in nats as well.
    """

    def __init__(
        self,
        function: Callable[..., tuple[Any, Tensors]],
        *programs: Program | Any,
        compiled: bool = True,
        tolerance: float = TOLERANCE,
        in_nats: slice = NO_NATS,
    ) -> None:
        self.function = function
        self.compiled = compiled
        self.tolerance = tolerance
        self.in_nats = in_nats
        self._programs: list[Any] = list(programs)
        self._surroundings: Surroundings | None = None
        self._records: dict[Any, Record] = {}

    def __call__(self, *inputs: Tensor) -> tuple[Any, Tensors]:
        """Run the graph; neither inputs nor results carry gradients.

        Returns:
            The static Python values that the function returned while it was recorded, and the tensors.

        Raises:
            GraphError: If the function cannot be recorded.
        """
        inputs = tuple(x.contiguous() for x in inputs)  # compiled code assumes contiguous inputs
        record = self.recorded(inputs)
        with torch.no_grad():
            return record.static, record.run(*inputs, *record.read())

    def check(self, *inputs: Tensor) -> None:
        """Compare the graph with the function on these inputs and the same noise, without side effects.

        Raises:
            GraphError: If recording fails or the results differ.
        """
        # Watching Python values is a heuristic: a number in a file, in a C extension or in a global of a library can
        # change undetected, and the graph would silently continue with the old one. Only the results reveal that, and
        # only on a batch other than the recorded one.
        inputs = tuple(x.contiguous() for x in inputs)
        record = self.recorded(inputs)
        assert self._surroundings is not None

        def eager(*inputs: Tensor) -> Tensors:
            return self.function(*_copies(inputs))[1]

        def recorded(*inputs: Tensor) -> Tensors:
            return record.run(*inputs, *record.read())

        if not same_results(eager, recorded, inputs, self._surroundings, self.tolerance, self.in_nats):
            raise GraphError("the program and its graph give different results; a frozen value changes between calls")

    def compare(self, *inputs: Tensor) -> tuple[Any, Tensors]:
        """Run the graph after a `check` on these inputs; if that fails, nothing has changed.

        Raises:
            GraphError: If recording fails or the results differ.
        """
        self.check(*inputs)
        return self(*inputs)

    @property
    def surroundings(self) -> Surroundings:
        """The objects around the programs, after a call of `recorded`."""
        assert self._surroundings is not None
        return self._surroundings

    def cache_key(self, inputs: tuple[Tensor, ...]) -> Any:
        """Return everything that Python control flow may depend on; calls with equal keys share a record."""
        state = self._surroundings.state() if self._surroundings else None
        return state, tuple(stored_ids().items()), tuple([(x.shape, x.dtype, x.device) for x in inputs])

    def cuda_graph_key(self, inputs: tuple[Tensor, ...]) -> Any:
        """Return everything that a captured CUDA graph depends on: the cache key and the tensors that the record reads.

        Tensors on the host count with their version, because capture copies their values into the CUDA graph.
        """
        record = self._records.get(key := self.cache_key(inputs))
        tensors = [] if record is None else record.read()
        return key, [(id(t), 0 if devices.can_capture(t) else t._version) for t in tensors]

    def recorded(self, inputs: tuple[Tensor, ...]) -> Record:
        """Return the record for inputs of these shapes; make one if there is none or it is stale."""
        try:
            if self._surroundings is None:
                self._surroundings = Surroundings(self._programs)
            key = self.cache_key(inputs)
            if key not in self._records or self._records[key].is_stale():
                record = self._record(inputs)
                key = self.cache_key(inputs)  # recompute: modules found while recording are now watched
                self._records[key] = record
        except OverflowError as error:
            raise GraphError(str(error)) from error
        return self._records[key]

    def _record(self, inputs: tuple[Tensor, ...]) -> Record:
        """Record the function at these inputs, and compile the graph if requested."""
        assert self._surroundings is not None
        if self._surroundings.num_states > _MOST_STATES:
            name = self._surroundings.last_change
            raise GraphError(f"{name} changes from call to call, which a graph would freeze; make it a tensor")
        static: Any = None

        def tensors(*inputs: Tensor) -> Tensors:
            nonlocal static
            static, results = self.function(*inputs)
            return results

        with fork_rng(inputs[0]), pyro.validation_enabled(False):
            with undo_effects(self._surroundings):
                graph = self._trace(tensors, inputs)
            masks = constant_fold_masks(graph)
            outside = lift_constants(graph)
            run = None
            if self.compiled:
                expected: Callable[..., Tensors] = lambda *inputs: graph(*inputs, *outside)  # noqa: E731
                run = compile_checked(graph, inputs, outside, expected, self.surroundings, self.tolerance, self.in_nats)
        return Record.of(static, run or graph, outside, masks, self._surroundings)

    def _trace(self, tensors: Callable[..., Tensors], inputs: tuple[Tensor, ...]) -> GraphModule:
        """Run a function once, then trace it and return its operations.

        The first run performs one-time work, which must not be recorded, and finds the modules that run. Each run gets
        copies of the inputs: a transform recognizes the tensor that it was given last, and would put its cached inverse
        into the graph as a constant.
        """

        def without_host_reads(*inputs: Tensor) -> Tensors:
            with refuse_host_reads():
                return tensors(*inputs)

        try:
            with ModuleRecorder() as ran:
                tensors(*_copies(inputs))
            self._watch(ran)
            return make_fx(without_host_reads)(*_copies(inputs))
        except GraphError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise GraphError(f"it cannot be traced ({in_one_line(error)})") from error

    def _watch(self, ran: ModuleRecorder) -> None:
        """Watch the modules that ran, including those that cannot be reached from the programs."""
        assert self._surroundings is not None
        if hidden := [module for module in ran.found if module not in self._surroundings.modules]:
            self._programs += hidden
            self._surroundings = Surroundings(self._programs)
            self._records.clear()


def _copies(tensors: tuple[Tensor, ...]) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors]
