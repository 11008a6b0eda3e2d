"""A device that exists on every machine: its tensors hold CPU tensors, and operations reject tensors of two devices.

    install()
    x = torch.zeros(3, device="simulated")
    x + torch.ones(3)  # raises, as on CUDA
    x.numpy()          # raises, as on CUDA

The rules are those of CUDA: an operation takes tensors of one device, but for CPU tensors without dimensions and for
CPU indices. Numbers are those of the CPU to the bit, random ones included.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "simulated"
_aten = torch.ops.aten
_COPIES = {_aten._to_copy.default, _aten.copy_.default, _aten._copy_from.default}
_INDEXED = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}
_LIBRARIES: list[torch.library.Library] = []  # a library that is collected takes its functions with it


class _DeviceTensor(Tensor):
    """A tensor on the simulated device, with the shape and the strides of the CPU tensor that it holds."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> _DeviceTensor:
        self = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )
        self.held = held
        return self

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, *args, **(kwargs or {}))

    # Methods of Tensor that torch implements without its dispatcher.
    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, **kwargs: Any) -> Any:
        raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() first.")

    def __array__(self, *args: Any) -> Any:
        return self.numpy()

    def __format__(self, spec: str) -> str:
        return self.cpu().__format__(spec)

    def __repr__(self, **kwargs: Any) -> str:
        return f"{self.detach().cpu()!r} on {self.device}"


def _run(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Run an operation on the CPU tensors that its arguments hold, and put its results on the device."""
    if func not in _COPIES:
        indices = tree_leaves(args[1]) if func in _INDEXED else []
        for tensor in tree_leaves((args, kwargs)):
            there = isinstance(tensor, Tensor) and not isinstance(tensor, _DeviceTensor) and tensor.dim() > 0
            if there and not any(tensor is index for index in indices):
                raise RuntimeError(f"Expected all tensors to be on the same device; {func} takes {NAME}:0 and cpu")
    to = kwargs.get("device")
    on_device = to is None or torch.device(to).type == NAME
    held_args, held_kwargs = tree_map_only(_DeviceTensor, lambda tensor: tensor.held, (args, kwargs))
    if to is not None:
        held_kwargs["device"] = torch.device("cpu")
    if held_kwargs.get("pin_memory"):
        held_kwargs["pin_memory"] = False
    if func is _aten._copy_from.default:
        held_args[1].copy_(held_args[0])
        return args[1]
    found = func(*held_args, **held_kwargs)
    if func is _aten.copy_.default:
        return args[0]
    if not on_device:
        return found
    return return_and_correct_aliasing(func, args, kwargs, tree_map_only(Tensor, _DeviceTensor, found))


def install() -> None:
    """Register the device with torch, once per process."""
    if _LIBRARIES:
        return
    _setup_privateuseone_for_python_backend(NAME)
    # Functions that create tensors have none among their arguments, and find the device by this dispatch key.
    _LIBRARIES.append(torch.library.Library("_", "IMPL"))
    _LIBRARIES[0].fallback(_run, "PrivateUse1")
    # `torch.tensor` calls the first three while the fallback is off; those of arange would change the size of a tensor.
    _LIBRARIES.append(torch.library.Library("aten", "IMPL"))
    creating = (_aten.empty_strided.default, _aten.empty.memory_format, _aten._copy_from.default)
    for func in (*creating, _aten.arange.default, _aten.arange.start, _aten.arange.start_step):
        _LIBRARIES[1].impl(func, partial(_run, func), "PrivateUse1")
