r"""The devices whose work can be captured as a CUDA graph."""

from __future__ import annotations

from torch import Tensor


def can_capture(tensor: Tensor) -> bool:
    """Return whether operations on a tensor are queued on a device that can capture them as a CUDA graph.

    Such a device reads the tensor when it executes the operation, and the host does not wait for it.
    """
    return tensor.is_cuda
