r"""The values that an objective writes before each of the next steps, computed in advance on the host.

A captured step reads the tensors of its objective, for example a beta that rises. Steps that are captured together
cannot wait for the host to write them in between, so that the host writes the values of all steps into one table first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_vae.trace.graphs import devices

_aten = torch.ops.aten
# Operations that replace all values of their first argument by those of the second, or by zero.
_REPLACES = {
    _aten.fill_.Scalar,
    _aten.fill_.Tensor,
    _aten.copy_.default,
    _aten.zero_.default,
}


class UnknownValue(Exception):
    """A value that the host does not know before the device has computed it."""


class Tables:
    """Tensors on the device that are written before each of some steps, and a table on the host for each of them.

    Args:
        set_step: Function that prepares for a step, given its index.
        steps: Indices of the steps.
        check: Function called after each step has been prepared; returns whether the steps may still be captured
            together. It is False if `set_step` changes a number, or exchanges a tensor, on which a captured step
            depends.

    Raises:
        UnknownValue: If `set_step` computes on the device, or does not write a tensor before the first of the steps but
            before a later one, or `check` returns False. No tensor on the device has been written.
    """

    def __init__(self, set_step: Callable[[int], None], steps: Sequence[int], check: Callable[[], bool]) -> None:
        writes = _Writes(len(steps))
        for row, step in enumerate(steps):
            with writes.of(row):
                set_step(step)
            if not check():
                raise UnknownValue("set_step changes a value that a captured step freezes")
        self.targets: list[Tensor] = [target for target, _ in writes.tables.values()]
        self.rows: list[Tensor] = [rows for _, rows in writes.tables.values()]  # (steps, *shape) each
        self.key = tuple(writes.tables)


class _Writes(TorchDispatchMode):
    """Redirects writes to tensors on the device to rows of tables on the host."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.tables: dict[Any, tuple[Tensor, Tensor]] = {}  # by the place in memory, as a program may rebuild a view
        self._steps, self._row = steps, 0

    @contextmanager
    def of(self, row: int) -> Iterator[None]:
        """Write to a row, which starts as a copy of the previous one."""
        self._row = row
        for _, rows in self.tables.values():
            rows[row] = rows[row - 1]
        with self:
            yield

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation on the host, or redirect it if it replaces the values of a tensor on the device."""
        kwargs = kwargs or {}
        leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not any(map(devices.can_capture, leaves)):
            return func(*args, **kwargs)
        target, *sources = args
        if func not in _REPLACES or any(isinstance(s, Tensor) and devices.can_capture(s) for s in sources):
            raise UnknownValue(f"set_step computes on the device ({func})")
        key = target.data_ptr(), target.shape, target.stride(), target.dtype
        if key not in self.tables:
            if self._row > 0:
                raise UnknownValue("a tensor is not written before each step")
            self.tables[key] = target, torch.zeros((self._steps, *target.shape), dtype=target.dtype, device="cpu")
        func(self.tables[key][1][self._row], *sources, **kwargs)
        return target
