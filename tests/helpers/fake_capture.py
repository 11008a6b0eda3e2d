"""A stand-in for `torch.cuda.CUDAGraph` on the CPU that obeys the rules of a device.

Capture executes nothing that can be seen afterwards: operations run, because their results are needed as tensors, but
what they wrote into memory that existed before is restored, and so are the random numbers that they drew. A replay runs
the recorded operations in order, on the same memory: it reads and writes the tensors that they were recorded with, and
Python numbers among their arguments have the values that they had then. Operations that would make the host wait for
the device, or copy from its memory, raise during capture, except for `tolist` and `numpy`, which issue no operation on
the CPU. The host cannot see that a replay has written a tensor: it does not change versions.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
# Their results are numbers, shapes or copies that the host has to wait for; `lift_fresh` is a tensor of Python numbers.
_WAITS = {
    _aten._local_scalar_dense,
    _aten.equal,
    _aten.is_nonzero,
    _aten.nonzero,
    _aten.masked_select,
    _aten.unique_dim,
    _aten._unique2,
    _aten.lift_fresh,
}


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Return the arguments that an operation writes, according to its schema."""
    values = [
        kwargs[argument.name] if argument.name in kwargs else args[place] if place < len(args) else None
        for place, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    return _tensors(values)


class FakeGraph:
    """A recorded sequence of operations."""

    replaying = False
    replays = 0  # of all graphs, until `Outside.taken` is called

    def __init__(self) -> None:
        self.work: list[tuple[Any, Any, Any, Any]] = []

    def pool(self) -> tuple[int, int]:
        return (0, 1)

    def replay(self) -> None:
        FakeGraph.replaying = True
        FakeGraph.replays += 1
        try:
            with torch.no_grad(), torch._C._AutoDispatchBelowADInplaceOrView():
                for func, args, kwargs, recorded in self.work:
                    self._run(func, args, kwargs, recorded)
        finally:
            FakeGraph.replaying = False

    @staticmethod
    def _run(func: Any, args: Any, kwargs: Any, recorded: Any) -> None:
        inputs = {_memory(tensor) for tensor in _tensors((args, kwargs))}
        outputs = _tensors(recorded)
        if outputs and not _written(func, args, kwargs) and all(_memory(tensor) in inputs for tensor in outputs):
            return  # a view, which shows what is in memory now
        for old, new in zip(outputs, _tensors(func(*args, **kwargs)), strict=True):
            if _memory(old) not in inputs:
                old.copy_(new)


class _Capture(TorchDispatchMode):
    def __init__(self, graph: FakeGraph) -> None:
        super().__init__()
        self.graph = graph
        self.own: set[int] = set()  # memory allocated during capture
        self.before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        masks = func.overloadpacket in (_aten.index, _aten.index_put, _aten.index_put_) and any(
            tensor.dtype in (torch.bool, torch.uint8) for tensor in _tensors(args[1])
        )
        if func.overloadpacket in _WAITS or masks:
            raise RuntimeError(f"{func} is not permitted while a stream is capturing")
        for tensor in _written(func, args, kwargs):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.own:
                self.before.setdefault(storage.data_ptr(), (storage, storage.clone()))
        result = func(*args, **kwargs)
        inputs = {_memory(tensor) for tensor in _tensors((args, kwargs))}
        self.own |= {_memory(tensor) for tensor in _tensors(result)} - inputs
        # Containers are copied, since Python may change them; tensors are kept, so that their memory is not reused.
        self.graph.work.append((func, *pytree.tree_map(lambda leaf: leaf, (args, kwargs)), result))
        return result


@contextlib.contextmanager
def _capturing(graph: FakeGraph, pool: Any = None) -> Iterator[None]:
    assert not graph.work
    noise = torch.get_rng_state()
    mode = _Capture(graph)
    try:
        with mode:
            yield
    finally:
        for storage, values in mode.before.values():
            storage.copy_(values)
        torch.set_rng_state(noise)


class _FakeStream:
    def wait_stream(self, other: Any) -> None:
        pass


class Outside(TorchDispatchMode):
    """Counts what is launched outside of captured graphs: operations by name, and replays.

    Operations on tensors that were made on the host are not launched: those made of Python numbers, or for a device by
    name. Neither are views.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()
        self._host: dict[int, Tensor] = {}  # by memory, which a reference keeps from being reused

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if FakeGraph.replaying:
            return result
        inputs, outputs = _tensors((args, kwargs)), _tensors(result)
        memory = {_memory(tensor) for tensor in inputs}
        if func.overloadpacket is _aten.lift_fresh or (not inputs and (kwargs or {}).get("device") is not None):
            self._host |= {_memory(tensor): tensor for tensor in outputs}
        elif not memory <= self._host.keys():
            shows = all(_memory(tensor) in memory for tensor in outputs) and not _written(func, args, kwargs or {})
            self.count[func.overloadpacket.__name__] += not shows
        return result

    def taken(self) -> Counter[str]:
        """Return the number of launches since the last call."""
        found, self.count = +self.count, Counter()
        found["replay"], FakeGraph.replays = FakeGraph.replays, 0
        return found


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace CUDA graphs and streams, and treat the CPU as a device that can capture."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", _capturing)
    monkeypatch.setattr(torch.cuda, "Stream", _FakeStream)
    monkeypatch.setattr(torch.cuda, "current_stream", _FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr("pyro_vae.trace.graphs.devices.can_capture", lambda tensor: True)
