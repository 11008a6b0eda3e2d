r"""Placement of tensors that may not fit into memory: temporary files, and training images on the host."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence

import torch
from torch import Tensor

_LARGE = 2**28  # bytes
_DEVICE_SHARE = 4  # training images may take 1/4 of the free memory of a device


def empty(shape: Sequence[int], like: Tensor) -> Tensor:
    """Return an uninitialized tensor with the given shape, and the dtype and the device of `like`.

    On the CPU, a tensor above 256 MiB is memory-mapped from an unnamed file in the temporary directory (``TMPDIR``), so
    that the operating system may write it out when memory is short. If the file system has no room for it, or cannot
    reserve room, the tensor is in memory.
    """
    size = torch.Size(shape).numel()
    num_bytes = size * like.element_size()
    if like.device.type != "cpu" or num_bytes <= _LARGE:
        return like.new_empty(shape)
    try:
        with tempfile.NamedTemporaryFile(prefix="pyro_vae-") as file:
            # Reserve the room now: writing to a mapped file on a full disk would kill the process (SIGBUS).
            os.posix_fallocate(file.fileno(), 0, num_bytes)
            return torch.from_file(file.name, shared=True, size=size, dtype=like.dtype).view(tuple(shape))
    except (OSError, AttributeError):  # posix_fallocate is missing on macOS and Windows
        return like.new_empty(shape)


def place(images: Tensor, device: torch.device | str) -> Tensor:
    """Move training images to a device, unless they take more than a quarter of its free memory.

    Images that stay on the host are copied to the device batch by batch; see `StreamedBatches`.
    """
    device = torch.device(device)
    if device.type == "cuda" and images.nbytes > torch.cuda.mem_get_info(device)[0] / _DEVICE_SHARE:
        return images
    return images.to(device)
