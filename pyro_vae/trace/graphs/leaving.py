r"""Detect values that leave torch: numbers and arrays read off a tensor, which a graph would freeze."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_vae.trace.graphs.fx import GraphError

# Methods that copy values to Python or NumPy, without an operation that tracing would record.
_READS = {
    getattr(Tensor, name): name.strip("_")
    for name in ("item", "tolist", "numpy", "__array__", "__float__", "__int__", "__bool__", "__index__", "__complex__")
}
_aten = torch.ops.aten
# Operations whose values decide which operations follow: a Python number, or the lengths of sequences.
_DECIDES = {_aten._local_scalar_dense.default: "item", _aten._pack_padded_sequence.default: "pack_padded_sequence"}


def _one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Return `torch.nn.functional.one_hot` without its range check, which reads the largest and smallest label."""
    return (labels.unsqueeze(-1) == torch.arange(num_classes, device=labels.device)).long()


class _Functions(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a torch function, or raise if it reads values off a tensor."""
        if func is one_hot:
            sizes = (*args[1:], *(kwargs or {}).values())
            if sizes and sizes[0] > 0:
                return _one_hot(args[0], sizes[0])
        if func in _READS:
            raise GraphError(f"it reads values off a tensor ({_READS[func]}), which a graph would freeze")
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call an operation, or raise if it reads values off a tensor."""
        if func in _DECIDES:
            raise GraphError(f"it reads values off a tensor ({_DECIDES[func]}), which a graph would freeze")
        return func(*args, **(kwargs or {}))


@contextmanager
def refuse_host_reads() -> Iterator[None]:
    """Raise `GraphError` if a function inside the context reads numbers or arrays off a tensor."""
    with _Functions(), _Operations():
        yield
