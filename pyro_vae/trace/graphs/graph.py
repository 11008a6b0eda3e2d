r"""A function that runs programs, as one graph of tensor operations.

Effect handlers, distributions and autograd run once, while the operations they issue are recorded; the record takes
their place, compiled or operation by operation. Every tensor that it reads from outside (parameters, buffers, a tensor
that anneals beta, labels in an attribute) stays an input, read anew at each call. What Python decides is frozen, and
watched: a call with other shapes, modules in another mode, parameters that train or do not, or other numbers around the
program gets a record of its own. A function that changes numbers itself, or reads them off a tensor, is refused. What
no watch sees shows when the record is compared with the function on another batch and the same noise: `compare`.

Random numbers are drawn from torch's own streams, so that the graph draws what the function would have drawn.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.errors import is_out_of_memory
from pyro_vae.trace.batch import Program
from pyro_vae.trace.graphs.fx import GraphError, Tensors, compiled_record, freeze_places, lift
from pyro_vae.trace.graphs.leaving import refuse_to_leave_torch
from pyro_vae.trace.graphs.slots import Slot, is_plain
from pyro_vae.trace.graphs.surroundings import Surroundings
from pyro_vae.trace.isolation import fork_rng, stored_ids
from pyro_vae.trace.modes import ModulesThatRun

_LOG = logging.getLogger("pyro_vae")

# A record has the operations of the function, in its order; a compiler adds rounding, which sums of many terms enlarge.
_TOLERANCE = 1e-4
_MOST_STATES = 10  # of the surroundings: what changes more often changes from call to call


class Graph:
    """A function of tensors that runs programs, recorded at its first call for each shape.

    Args:
        function: of tensors; returns what Python knows, such as the names of sites, and a tuple of tensors, or None.
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
        tolerance: float = _TOLERANCE,
    ) -> None:
        self.function = function
        self.compiled = compiled
        self.tolerance = tolerance
        self._programs: list[Any] = list(programs)
        self._surroundings: Surroundings | None = None
        self._records: dict[Any, _Record] = {}

    def __call__(self, *inputs: Tensor) -> tuple[Any, Tensors]:
        """Run the graph on tensors that carry no gradient; neither do the results.

        Returns:
            What Python knew when the graph was recorded, and the tensors.

        Raises:
            GraphError: the function cannot be recorded.
        """
        inputs = tuple(x.contiguous() for x in inputs)  # what is compiled is compiled for one layout
        record = self._recorded(inputs)
        with torch.no_grad():
            return record.known, record.run(*inputs, *record.read())

    def compare(self, *inputs: Tensor) -> tuple[Any, Tensors]:
        """Run the graph as a call does, after it has been held against the function on the same noise.

        Raises:
            GraphError: the function cannot be recorded, or its record differs. Nothing has been drawn or changed then.
        """
        inputs = tuple(x.contiguous() for x in inputs)
        record = self._recorded(inputs)
        found = []
        for function in (
            lambda *inputs: self.function(*_copies(inputs))[1],
            lambda *inputs: record.run(*inputs, *record.read()),
        ):
            with fork_rng(_some(inputs)), pyro.validation_enabled(False), self._left_as_it_was(), torch.no_grad():
                results = function(*inputs)
                found.append((*results, *(buffer.clone() for buffer in self._buffers())))
        if len(found[0]) != len(found[1]) or not self._agree(list(zip(*found, strict=True))):
            raise GraphError("the program gives other numbers than its record, by something that changes between calls")
        return self(*inputs)

    def key(self, inputs: tuple[Tensor, ...]) -> Any:
        """Return what Python may have decided by."""
        state = self._surroundings.state() if self._surroundings else None
        return state, tuple(stored_ids().values()), tuple([(x.shape, x.dtype, x.device) for x in inputs])

    def captured_key(self, inputs: tuple[Tensor, ...]) -> Any:
        """Return what a captured graph of such inputs stands on: its key, its tensors, and how often the host wrote."""
        key = self.key(inputs)
        record = self._records.get(key)
        tensors = [] if record is None else record.read()
        return key, [(id(t), t._version if t.device.type == "cpu" else 0) for t in tensors]

    def _recorded(self, inputs: tuple[Tensor, ...]) -> _Record:
        try:
            if self._surroundings is None:
                self._surroundings = Surroundings(self._programs)
            key = self.key(inputs)
            if key not in self._records or self._records[key].is_stale():
                record = self._record(inputs)
                key = self.key(inputs)  # the modules that ran are watched from now on
                self._records[key] = record
        except OverflowError as error:
            raise GraphError(str(error)) from error
        return self._records[key]

    def _record(self, inputs: tuple[Tensor, ...]) -> _Record:
        assert self._surroundings is not None
        if self._surroundings.number_of_states > _MOST_STATES:
            name = self._surroundings.last_change
            raise GraphError(f"{name} changes from call to call, which a graph would freeze; make it a tensor")
        known: Any = None

        def tensors(*inputs: Tensor) -> Tensors:
            nonlocal known
            known, found = self.function(*inputs)
            return found

        def strictly(*inputs: Tensor) -> Tensors:
            with refuse_to_leave_torch():
                return tensors(*inputs)

        with fork_rng(_some(inputs)), pyro.validation_enabled(False):
            with self._left_as_it_was():
                try:
                    # Copies each time: a transform knows the very tensor that it had last, and would put its inverse
                    # into the record as a constant.
                    with ModulesThatRun() as ran:
                        tensors(*_copies(inputs))  # what is done once (the layout, a cache) is not in the record
                    self._watch(ran)
                    graph = make_fx(strictly)(*_copies(inputs))
                except GraphError:
                    raise
                except Exception as error:
                    if is_out_of_memory(error):
                        raise
                    raise GraphError(f"it cannot be traced ({_in_one_line(error)})") from error
            frozen = freeze_places(graph)
            outside = lift(graph)
            _refuse_hooks(outside)
            run: Callable[..., Tensors] = graph
            if self.compiled:
                run = self._compile(graph, inputs, outside)
        places = self._surroundings.places()
        slots = [places.get(id(tensor)) for tensor in outside]
        masks = [(tensor, places.get(id(tensor)), tensor.clone()) for tensor in frozen]
        return _Record(known, run, outside, slots, masks)

    def _compile(self, graph: GraphModule, inputs: tuple[Tensor, ...], outside: list[Tensor]) -> Callable[..., Tensors]:
        """Compile a record, and hold what the compiler has made against it: compilers have errors, too."""
        try:
            run = compiled_record(graph, [*inputs, *(tensor.detach() for tensor in outside)])
            found = []
            for function in (graph, run):
                with self._left_as_it_was(), fork_rng(_some((*inputs, *outside))), torch.no_grad():
                    found.append(function(*inputs, *outside))
            if not self._agree(list(zip(*found, strict=True))):
                raise RuntimeError("the compiled graph gives other numbers")
        except Exception as error:  # a compiler may fail in any way; the record needs none
            if is_out_of_memory(error):
                raise
            _LOG.warning("Not compiled (%s): operations run one by one.", _in_one_line(error))
            return graph
        return run

    def _watch(self, ran: ModulesThatRun) -> None:
        """Watch the modules that ran as well, whatever holds them."""
        assert self._surroundings is not None
        if hidden := [module for module in ran.found if module not in self._surroundings.modules]:
            self._programs += hidden
            self._surroundings = Surroundings(self._programs)
            self._records.clear()

    def _buffers(self) -> list[Tensor]:
        assert self._surroundings is not None
        tables = [module._buffers.values() for module in self._surroundings.modules]
        return list({id(buffer): buffer for table in tables for buffer in table if buffer is not None}.values())

    def _agree(self, pairs: list[tuple[Tensor | None, Tensor | None]]) -> bool:
        """Whether results are the same but for rounding, each relative to its largest entry."""
        if any((a is None) != (b is None) or (a is not None and a.shape != b.shape) for a, b in pairs):  # type: ignore[union-attr]
            return False
        numbers = [(a.double(), b.double()) for a, b in pairs if a is not None and b is not None and a.numel()]
        numbers = [(a.nan_to_num(0.0), b.nan_to_num(0.0)) for a, b in numbers if not torch.equal(a, b)]
        largest = max((float(a.abs().max()) for a, _ in numbers), default=0.0)
        return all(
            float((a - b).abs().max()) <= self.tolerance * (float(a.abs().max()) + 1e-3 * largest) for a, b in numbers
        )

    @contextmanager
    def _left_as_it_was(self) -> Iterator[None]:
        """Take back what running the function does beside its results, and refuse what it does in Python."""
        surroundings = self._surroundings
        assert surroundings is not None
        values = surroundings.values()
        # Buffers, and whatever else holds numbers of its own: a moving average in an attribute, for one.
        tensors = [value for value in values if isinstance(value, Tensor) and not value.requires_grad]
        before = [(tensor, tensor.clone()) for tensor in {id(t): t for t in (*self._buffers(), *tensors)}.values()]
        lists = surroundings.lists()
        generators = [(value, value.get_state()) for value in values if isinstance(value, torch.Generator)]
        streams = random.getstate(), np.random.get_state()
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in before:
                    tensor.copy_(value)
            for generator, state in generators:
                generator.set_state(state)
            drawn = repr(streams) != repr((random.getstate(), np.random.get_state()))  # the caller puts them back
            changed = surroundings.changed(values)
            counted = [(slot, old) for slot, old in changed if _is_kept(slot.read(), old)]
            for slot, old in counted:
                slot.write(old)
            grown = [things for things, length in lists if len(things) > length]
            for things, length in lists:
                del things[length:]
        if drawn:
            raise GraphError("it draws random numbers from NumPy or Python, which a graph would freeze")
        if grown:
            raise GraphError("a list of the program grows from call to call, which a graph would not do")
        for slot, _ in counted:
            raise GraphError(f"{slot.name} changes from call to call, which a graph would freeze; make it a tensor")
        for slot, _ in changed:
            surroundings.ignore(slot)  # a cache: what it holds, the program has computed
        if changed:
            surroundings.scan()


class _Record(NamedTuple):
    known: Any
    run: Callable[..., Tensors]
    outside: list[Tensor]  # what it read when it was made, kept alive
    slots: list[Slot | None]  # where some of them stand that may be exchanged
    masks: list[tuple[Tensor, Slot | None, Tensor]]  # what decided shapes, where it stands, and its values

    def is_stale(self) -> bool:
        """Whether a mask is another one than that which decided the shapes of the record."""
        return any(not torch.equal(t if slot is None else slot.read(), old) for t, slot, old in self.masks)

    def read(self) -> list[Tensor]:
        """Return what it reads from outside, as that is now."""
        return [t if slot is None else slot.read() for t, slot in zip(self.outside, self.slots, strict=True)]


def _is_kept(new: Any, old: Any) -> bool:
    """Whether a value in the place of another is kept from call to call: a counter, or a tensor that is rebound.

    What was nothing before is a cache.
    """
    if isinstance(new, Tensor) and isinstance(old, Tensor):
        return True
    return is_plain(new) and is_plain(old)


def _copies(tensors: tuple[Tensor, ...]) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors]


def _some(tensors: tuple[Tensor, ...]) -> Tensor:
    """Return a tensor on the device of a function's inputs."""
    return tensors[0] if tensors else torch.empty(0)


def _refuse_hooks(outside: list[Tensor]) -> None:
    for tensor in outside:
        if tensor._backward_hooks or getattr(tensor, "_post_accumulate_grad_hooks", None):
            raise GraphError("a parameter has a gradient hook, which a graph would not call")


def _in_one_line(error: Exception) -> str:
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first[:200]}"
