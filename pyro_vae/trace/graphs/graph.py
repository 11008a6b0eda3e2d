r"""A function that runs programs, as one graph of tensor operations.

Effect handlers, distributions and autograd run once, while the operations that they issue are recorded; from then on
the record takes the place of the function, compiled or operation by operation.

    inputs of the record      every tensor that it reads (parameters, buffers, a tensor that anneals beta, labels in an
                              attribute), read anew at each call
    part of the record        what Python decides. A call with other shapes, modules in another mode, other parameters
                              that train, or other numbers around the program gets a record of its own
    refused                   a function that changes numbers in Python, or reads them off a tensor

What escapes these rules shows when the record is compared with the function on another batch and the same noise:
`compare`. Random numbers are drawn from torch's own streams, so that the graph draws what the function would have
drawn.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.errors import is_out_of_memory
from pyro_vae.trace.batch import Program
from pyro_vae.trace.graphs.comparison import TOLERANCE, same_results
from pyro_vae.trace.graphs.effects import undo_effects
from pyro_vae.trace.graphs.fx import (
    GraphError,
    Tensors,
    compile_graph,
    constant_fold_masks,
    in_one_line,
    lift_constants,
)
from pyro_vae.trace.graphs.leaving import refuse_host_reads
from pyro_vae.trace.graphs.record import Record
from pyro_vae.trace.graphs.surroundings import Surroundings
from pyro_vae.trace.isolation import fork_rng, stored_ids
from pyro_vae.trace.modes import ModuleRecorder

_LOG = logging.getLogger("pyro_vae")

_MOST_STATES = 10  # of the surroundings: what changes more often changes from call to call


class Graph:
    """A function of tensors that runs programs, recorded at its first call for each shape.

    Args:
        function: of one tensor or more; returns what Python knows, such as the names of sites, and a tuple of tensors,
            or None.
        programs: those it runs, and other objects whose attributes it reads: what they reach is watched.
        compiled: whether the record is compiled. Where that fails, for want of a C++ compiler for one, a line of the
            log says so and the operations run one by one.
        tolerance: relative difference that rounding may make.
    """

    def __init__(
        self,
        function: Callable[..., tuple[Any, Tensors]],
        *programs: Program | Any,
        compiled: bool = True,
        tolerance: float = TOLERANCE,
    ) -> None:
        self.function = function
        self.compiled = compiled
        self.tolerance = tolerance
        self._programs: list[Any] = list(programs)
        self._surroundings: Surroundings | None = None
        self._records: dict[Any, Record] = {}

    def __call__(self, *inputs: Tensor) -> tuple[Any, Tensors]:
        """Run the graph on tensors that carry no gradient; neither do the results.

        Returns:
            What Python knew when the graph was recorded, and the tensors.

        Raises:
            GraphError: the function cannot be recorded.
        """
        inputs = tuple(x.contiguous() for x in inputs)  # what is compiled is compiled for one layout
        record = self.recorded(inputs)
        with torch.no_grad():
            return record.static, record.run(*inputs, *record.read())

    def compare(self, *inputs: Tensor) -> tuple[Any, Tensors]:
        """Run the graph as a call does, after it has been compared with the function on the same noise.

        Raises:
            GraphError: the function cannot be recorded, or its record differs. Nothing has been drawn or changed then.
        """
        # Watching Python is a heuristic: a number in a file, in a C extension or in a library's global can change
        # unseen, and the record would go on with the old one without an error. Only the numbers themselves show it,
        # and only on another batch than the one that was recorded.
        inputs = tuple(x.contiguous() for x in inputs)
        record = self.recorded(inputs)
        assert self._surroundings is not None

        def eager(*inputs: Tensor) -> Tensors:
            return self.function(*_copies(inputs))[1]

        def recorded(*inputs: Tensor) -> Tensors:
            return record.run(*inputs, *record.read())

        if not same_results(eager, recorded, inputs, self._surroundings, self.tolerance):
            raise GraphError("the program gives other numbers than its record, by something that changes between calls")
        return self(*inputs)

    def cache_key(self, inputs: tuple[Tensor, ...]) -> Any:
        """Return all that Python may decide by: calls of one key share a record."""
        state = self._surroundings.state() if self._surroundings else None
        return state, tuple(stored_ids().items()), tuple([(x.shape, x.dtype, x.device) for x in inputs])

    def cuda_graph_key(self, inputs: tuple[Tensor, ...]) -> Any:
        """Return all that a CUDA graph of such inputs depends on: the key, and the tensors that the record reads.

        Of a tensor on the host also how often it has been written to: its values are copied into the CUDA graph.
        """
        key = self.cache_key(inputs)
        record = self._records.get(key)
        tensors = [] if record is None else record.read()
        return key, [(id(t), t._version if t.device.type == "cpu" else 0) for t in tensors]

    def recorded(self, inputs: tuple[Tensor, ...]) -> Record:
        """Return the record for inputs of these shapes, made anew where there is none or it is stale."""
        try:
            if self._surroundings is None:
                self._surroundings = Surroundings(self._programs)
            key = self.cache_key(inputs)
            if key not in self._records or self._records[key].is_stale():
                record = self._record(inputs)
                key = self.cache_key(inputs)  # the modules that ran are watched from now on
                self._records[key] = record
        except OverflowError as error:
            raise GraphError(str(error)) from error
        return self._records[key]

    def _record(self, inputs: tuple[Tensor, ...]) -> Record:
        """Record the function at some inputs, and compile the record where that is wanted."""
        assert self._surroundings is not None
        if self._surroundings.num_states > _MOST_STATES:
            name = self._surroundings.last_change
            raise GraphError(f"{name} changes from call to call, which a graph would freeze; make it a tensor")
        static: Any = None

        def tensors(*inputs: Tensor) -> Tensors:
            nonlocal static
            static, found = self.function(*inputs)
            return found

        with fork_rng(inputs[0]), pyro.validation_enabled(False):
            with undo_effects(self._surroundings):
                graph = self._trace(tensors, inputs)
            masks = constant_fold_masks(graph)
            outside = lift_constants(graph)
            run = self._compile(graph, inputs, outside) if self.compiled else graph
        return Record.of(static, run, outside, masks, self._surroundings)

    def _trace(self, tensors: Callable[..., Tensors], inputs: tuple[Tensor, ...]) -> GraphModule:
        """Return the operations of a function of tensors, after a first run that does what is done only once.

        Each run has copies of the inputs: a transform remembers the very tensor that it was given last, and would put
        the inverse that it remembers into the record as a constant.
        """

        def strictly(*inputs: Tensor) -> Tensors:
            with refuse_host_reads():
                return tensors(*inputs)

        try:
            with ModuleRecorder() as ran:
                tensors(*_copies(inputs))
            self._watch(ran)
            return make_fx(strictly)(*_copies(inputs))
        except GraphError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise GraphError(f"it cannot be traced ({in_one_line(error)})") from error

    def _compile(self, graph: GraphModule, inputs: tuple[Tensor, ...], outside: list[Tensor]) -> Callable[..., Tensors]:
        """Compile a record and compare the result with the record: compilers have errors, too."""
        assert self._surroundings is not None

        def interpreted(*inputs: Tensor) -> Tensors:
            return graph(*inputs, *outside)

        def compiled(*inputs: Tensor) -> Tensors:
            return run(*inputs, *outside)

        try:
            run = compile_graph(graph, [*inputs, *(tensor.detach() for tensor in outside)])
            if not same_results(interpreted, compiled, inputs, self._surroundings, self.tolerance):
                raise RuntimeError("the compiled graph gives other numbers")
        except Exception as error:  # a compiler may fail in any way; the record needs none
            if is_out_of_memory(error):
                raise
            _LOG.warning("Not compiled (%s): operations run one by one.", in_one_line(error))
            return graph
        return run

    def _watch(self, ran: ModuleRecorder) -> None:
        """Watch the modules that ran as well, whatever holds them."""
        assert self._surroundings is not None
        if hidden := [module for module in ran.found if module not in self._surroundings.modules]:
            self._programs += hidden
            self._surroundings = Surroundings(self._programs)
            self._records.clear()


def _copies(tensors: tuple[Tensor, ...]) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors]
