r"""External tensors of several records, stacked along a first dimension of records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from pyro_vae.trace.graphs.fx import GraphError


class Stack:
    """One external tensor (*shape) of each record, as one tensor `value`.

    If all records read the same memory, e.g. the training images, `value` is that tensor and `shared` is True.
    Otherwise it is a stack (S, *shape). A tensor that owns its memory becomes a view of the stack, so that an in-place
    update by an optimizer updates the stack. Other tensors are copied before each call, and after it if the graph
    writes to them.

    Args:
        tensors: Tensors by position in the stack. The content of missing positions is arbitrary.
        size: Size S of the stack.
        written: Whether the graph writes to the tensors.

    Raises:
        GraphError: If shapes, types or devices differ, or records change the same memory.
    """

    def __init__(self, tensors: Mapping[int, Tensor], size: int, written: bool) -> None:
        first = next(iter(tensors.values()))
        if any(_form(tensor) != _form(first) for tensor in tensors.values()):
            raise GraphError("tensors of one place have different shapes, types or devices")
        alone = len({tensor.untyped_storage().data_ptr() for tensor in tensors.values()}) == len(tensors)
        changes = written or any(tensor.requires_grad for tensor in tensors.values())
        if changes and not alone:
            raise GraphError("they change the same tensor")
        self.written = written
        self.shared = not changes and all(_is_same(tensor, first) for tensor in tensors.values())
        views = {slot for slot, tensor in tensors.items() if alone and not self.shared and _owns_memory(tensor)}
        self._copied = set() if self.shared else tensors.keys() - views
        if self.shared:
            self.value = first.detach()
        else:
            self.value = torch.stack([tensors.get(slot, first).detach() for slot in range(size)])
        for slot in views:
            tensors[slot].data = self.value[slot]
        self._held = dict(tensors)
        self._pointers = {slot: tensor.data_ptr() for slot, tensor in tensors.items()}

    def refresh(self, tensors: Mapping[int, Tensor]) -> bool:
        """Read the current tensors; return False if they must be stacked again."""
        for slot, tensor in tensors.items():
            if tensor is not self._held[slot] or tensor.data_ptr() != self._pointers[slot]:
                if self.written or self.shared or tensor.requires_grad:
                    return False
                # The program exchanges it between steps, e.g. labels in an attribute. The old tensor gets its own
                # memory again, otherwise its owner would find the new values in it.
                self.release(slot)
                self._copied.add(slot)
                self._held[slot], self._pointers[slot] = tensor, tensor.data_ptr()
            if slot in self._copied:
                self.value[slot].copy_(tensor.detach())
        return True

    def write_back(self, slots: Iterable[int]) -> None:
        """Copy what the graph has written to the tensors that are not views."""
        if self.written:
            for slot in self._copied.intersection(slots):
                self._held[slot].copy_(self.value[slot])

    def release(self, slot: int) -> None:
        """Give the tensor of a position its own memory again."""
        tensor = self._held[slot]
        is_view = not self.shared and tensor.data_ptr() == self.value[slot].data_ptr() and slot not in self._copied
        if is_view:
            tensor.data = tensor.detach().clone()

    def release_all(self) -> None:
        """Give every tensor its own memory again."""
        for slot in self._held:
            self.release(slot)


def _form(tensor: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return tensor.shape, tensor.dtype, tensor.device


def _is_same(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.stride() == b.stride()


def _owns_memory(tensor: Tensor) -> bool:
    """Return whether a tensor shares its memory with no other tensor or array; False if that is unknown."""
    storage = tensor.untyped_storage()
    count = getattr(torch._C, "_storage_Use_Count", None)
    whole = tensor.is_contiguous() and storage.nbytes() == tensor.numel() * tensor.element_size()
    plain = type(tensor) in (Tensor, nn.Parameter)
    # The two references are the tensor and `storage`. Memory shared with NumPy is not resizable.
    return bool(whole and plain and storage.resizable() and count is not None and count(storage._cdata) == 2)
