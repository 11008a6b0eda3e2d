r"""A function that runs programs, as one graph of tensor operations.

Effect handlers, distributions and autograd run once, while the operations they issue are recorded; the record takes
their place, compiled or operation by operation. Every tensor that it reads from outside (parameters, buffers, a tensor
that anneals beta, the images) stays an input, read anew at each call. What Python decides is frozen: a call with other
shapes, modules in another mode or parameters that train or do not gets a record of its own, and a function whose
numbers in Python change from call to call is refused.

Random numbers are drawn from torch's own streams, so that the graph draws what the function would have drawn.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.trace.memory import is_out_of_memory
from pyro_vae.trace.reading import Program, fork_rng, modules, owner
from pyro_vae.trace.records import GraphError, Tensors, compiled_record, freeze_places, lift

_LOG = logging.getLogger("pyro_vae")

_TOLERANCE = 0.02


class Graph:
    """A function of tensors that runs programs, recorded at its first call for each shape.

    Args:
        function: of tensors; returns what Python knows, such as the names of sites, and a tuple of tensors, or None.
        programs: those it runs, whose modules' modes are watched.
        compiled: whether the record is compiled. Where that fails, for want of a C++ compiler for one, a line of the
            log says so and the operations run one by one.
    """

    def __init__(self, function: Callable[..., tuple[Any, Tensors]], *programs: Program, compiled: bool = True) -> None:
        self.function = function
        self.compiled = compiled
        self._owners = [owner(program) for program in programs]
        self.roots = list(dict.fromkeys(root for program in programs for root in modules(program)))
        # Of the roots, since the last record: their parts, and what these hold.
        self._parts: list[nn.Module] = []
        self._tables: list[Mapping[str, Any]] = []
        self._records: dict[Any, _Record] = {}

    def __call__(self, *inputs: Tensor) -> tuple[Any, Tensors]:
        """Run the graph on tensors that carry no gradient; neither do the results.

        Returns:
            What Python knew when the graph was recorded, and the tensors.

        Raises:
            GraphError: the function cannot be recorded.
        """
        inputs = tuple(x.contiguous() for x in inputs)  # what is compiled is compiled for one layout
        key = self.key(inputs)
        if key not in self._records:
            self._parts = [part for root in self.roots for part in root.modules()]
            tables = ((part._modules, part._parameters, part._buffers) for part in self._parts)
            self._tables = [table for three in tables for table in three if table]
            key = self.key(inputs)
        if key not in self._records:
            with fork_rng(inputs[0]), pyro.validation_enabled(False):
                self._records[key] = self._record(inputs)
        record = self._records[key]
        with torch.no_grad():
            return record.known, record.run(*inputs, *record.outside)

    def host_versions(self, inputs: tuple[Tensor, ...]) -> list[int]:
        """Return how often each tensor on the host has been written to that the graph of such inputs reads."""
        record = self._records.get(self.key(inputs))
        return [] if record is None else [t._version for t in record.outside if t.device.type == "cpu"]

    def key(self, inputs: tuple[Tensor, ...]) -> Any:
        """Return what Python may have decided by; a part that has been exchanged is seen in the one that holds it."""
        held = [value for table in self._tables for value in table.values()]
        return (
            tuple([part.training for part in self._parts]),
            tuple([id(value) for value in held]),
            tuple([value.requires_grad for value in held if isinstance(value, Tensor)]),
            tuple([(x.shape, x.dtype, x.device) for x in inputs]),
        )

    def _record(self, inputs: tuple[Tensor, ...]) -> _Record:
        known: Any = None

        def tensors(*inputs: Tensor) -> Tensors:
            nonlocal known
            known, found = self.function(*inputs)
            return found

        with self._left_as_it_was():
            try:
                tensors(*inputs)  # what is done once (the probe of the layout, a cache) is not part of the record
                graph = make_fx(tensors)(*inputs)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                raise GraphError(f"it cannot be traced ({_in_one_line(error)})") from error
        freeze_places(graph)
        outside = lift(graph)
        run: Callable[..., Tensors] = graph
        if self.compiled:
            try:
                run = compiled_record(graph, [*inputs, *(tensor.detach() for tensor in outside)])
                with self._left_as_it_was():
                    _check(graph, run, (*inputs, *outside))
            except Exception as error:  # a compiler may fail in any way; the record needs none
                if is_out_of_memory(error):
                    raise
                _LOG.warning("Not compiled (%s): operations run one by one.", _in_one_line(error))
                run = graph
        return _Record(known, run, outside, self._parts)

    @contextmanager
    def _left_as_it_was(self) -> Iterator[None]:
        """Take back what running the function does beside its results, and refuse what it does in Python."""
        buffers = [(buffer, buffer.clone()) for root in self.roots for buffer in root.buffers()]
        streams = random.getstate(), np.random.get_state()
        holders = [holder for holder in (*self._owners, *self._parts) if hasattr(holder, "__dict__")]
        numbers = [(holder, name, value) for holder in holders for name, value in plain_values(holder).items()]
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
            drawn = repr(streams) != repr((random.getstate(), np.random.get_state()))  # the caller puts them back
            changed = [(h, name, value) for h, name, value in numbers if getattr(h, name, None) != value]
            for holder, name, value in changed:
                setattr(holder, name, value)
        if drawn:
            raise GraphError("it draws random numbers from NumPy or Python, which a graph would freeze")
        for holder, name, _ in changed:
            what = f"{type(holder).__name__}.{name}"
            raise GraphError(f"{what} changes from call to call, which a graph would freeze; make it a tensor")


class _Record(NamedTuple):
    known: Any
    run: Callable[..., Tensors]
    outside: list[Tensor]
    parts: list[nn.Module]  # kept alive, like the tensors, so that no other takes an identity that the key names


def _check(record: GraphModule, run: Callable[..., Tensors], inputs: tuple[Tensor, ...]) -> None:
    """Hold what a compiler has made of a record against the record, on the same noise: compilers have errors, too."""
    found = []
    for function in (record, run):
        with fork_rng(inputs[0]), torch.no_grad():
            found.append([output.double() for output in function(*inputs) if output is not None])
    pairs = [(a.nan_to_num(0.0), b.nan_to_num(0.0)) for a, b in zip(*found, strict=True) if a.numel()]
    largest = max((float(a.abs().max()) for a, _ in pairs), default=0.0)
    for a, b in pairs:
        # Rounding is far below this, also that of products in bfloat16.
        if not float((a - b).abs().max()) <= _TOLERANCE * (float(a.abs().max()) + 1e-3 * largest):
            raise RuntimeError("the compiled graph gives other numbers")


def plain_values(holder: Any) -> dict[str, Any]:
    """Return the attributes of an object that are numbers or words, which a graph freezes."""
    return {name: value for name, value in vars(holder).items() if isinstance(value, (bool, int, float, str))}


def _in_one_line(error: Exception) -> str:
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first[:200]}"
