r"""Precision of matrix products and convolutions in training; everything else stays in float32 or better.

Autocast would pass bfloat16 tensors to the distributions, whose log q would be off by tenths of a nat. Here every
product returns float32, so that log-densities keep full precision in any program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

_PRODUCTS = {
    functional.linear,
    functional.conv1d,
    functional.conv2d,
    functional.conv3d,
    functional.conv_transpose1d,
    functional.conv_transpose2d,
    functional.conv_transpose3d,
    torch.matmul,
    torch.mm,
    torch.bmm,
    torch.addmm,
    torch.baddbmm,
    Tensor.matmul,
    Tensor.__matmul__,
    Tensor.mm,
    Tensor.bmm,
}


class BFloat16Products(TorchFunctionMode):
    """Compute products of float32 tensors in bfloat16, and return them as float32."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a torch function; the arguments of matrix products and convolutions are rounded to bfloat16."""
        kwargs = kwargs or {}
        if func not in _PRODUCTS or not _all_float32(args, kwargs):
            return func(*args, **kwargs)
        args, kwargs = tree_map(lambda a: a.bfloat16() if isinstance(a, Tensor) else a, (args, kwargs))
        return func(*args, **kwargs).float()


def _all_float32(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
    return all(tensor.dtype == torch.float32 for tensor in tensors)


@contextmanager
def _tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


PRECISIONS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "float32": nullcontext,
    "tf32": _tf32,
    "bf16": BFloat16Products,
}
