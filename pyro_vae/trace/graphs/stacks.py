r"""The tensors that several records read in one place, as one tensor with a dimension for the records in front."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from pyro_vae.trace.graphs.fx import GraphError


class Stack:
    """One tensor of each record, as one.

    Where all records read the same memory, as of training images, that is the value, without a dimension for the
    records. Otherwise the value is a stack of size S. A tensor that has its memory for itself becomes a view of the
    stack, so that what an optimizer writes to it is read from there; others are copied, before each call and, where the
    graph writes to them, after it.

    Args:
        tensors: by position in the stack; a position that is left out holds numbers that nobody reads.
        size: S.
        written: whether the graph writes to the tensors.

    Raises:
        GraphError: forms differ, or records change the same memory.
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
        """Take the tensors as they are now; return whether they still stand in this stack."""
        for slot, tensor in tensors.items():
            if tensor is not self._held[slot] or tensor.data_ptr() != self._pointers[slot]:
                if self.written or self.shared or tensor.requires_grad:
                    return False
                # One that is exchanged between steps, such as labels in an attribute. The old one gets memory of its
                # own, or its holder would find the new numbers in it.
                self.release(slot)
                self._copied.add(slot)
                self._held[slot], self._pointers[slot] = tensor, tensor.data_ptr()
            if slot in self._copied:
                self.value[slot].copy_(tensor.detach())
        return True

    def write_back(self, slots: Iterable[int]) -> None:
        """Hand on what the graph has written, to those tensors that are no views."""
        if self.written:
            for slot in self._copied.intersection(slots):
                self._held[slot].copy_(self.value[slot])

    def release(self, slot: int) -> None:
        """Give a tensor memory of its own again."""
        tensor = self._held[slot]
        is_view = not self.shared and tensor.data_ptr() == self.value[slot].data_ptr() and slot not in self._copied
        if is_view:
            tensor.data = tensor.detach().clone()

    def release_all(self) -> None:
        """Give every tensor memory of its own again."""
        for slot in self._held:
            self.release(slot)


def _form(tensor: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return tensor.shape, tensor.dtype, tensor.device


def _is_same(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.stride() == b.stride()


def _owns_memory(tensor: Tensor) -> bool:
    """Whether no other tensor or array is known to stand in the memory of this one; False where that is unknown."""
    storage = tensor.untyped_storage()
    count = getattr(torch._C, "_storage_Use_Count", None)
    whole = tensor.is_contiguous() and storage.nbytes() == tensor.numel() * tensor.element_size()
    plain = type(tensor) in (Tensor, nn.Parameter)
    # Counted are the tensor and `storage`; the memory of an array of NumPy is not resizable.
    return bool(whole and plain and storage.resizable() and count is not None and count(storage._cdata) == 2)
