r"""Where tensors live that may be larger than the memory: in temporary files, and training images on the host."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence

import torch
from torch import Tensor

_LARGE = 2**28  # bytes
_DEVICE_SHARE = 4  # of the free memory of a device, training images may take a quarter


def empty(shape: Sequence[int], like: Tensor) -> Tensor:
    """Return an uninitialized tensor (shape) with the dtype and the device of another.

    On the CPU, a tensor above 256 MiB lies in an unnamed file in the temporary directory (``TMPDIR``) that is mapped
    into memory, so that the system may write it out when memory runs short. Where the file system has no room for it,
    or cannot reserve room, the tensor lies in memory.
    """
    result = like.new_empty(0)
    num_bytes = result.element_size() * torch.Size(shape).numel()
    if result.device.type != "cpu" or num_bytes <= _LARGE:
        return like.new_empty(shape)
    try:
        with tempfile.NamedTemporaryFile(prefix="pyro_vae-") as file:
            # Reserve the room now: writing to a mapped file on a full disk would end the process with a signal.
            os.posix_fallocate(file.fileno(), 0, num_bytes)
            size = torch.Size(shape).numel()
            return torch.from_file(file.name, shared=True, size=size, dtype=like.dtype).view(tuple(shape))
    except (OSError, AttributeError):  # macOS and Windows have no posix_fallocate
        return like.new_empty(shape)


def place(images: Tensor, device: torch.device | str) -> Tensor:
    """Return training images on a device, or where they are if they take more than a quarter of its free memory.

    Batches of images that stay on the host are copied to the device one by one; see `StreamedBatches`.
    """
    device = torch.device(device)
    if device.type == "cuda" and images.nbytes > torch.cuda.mem_get_info(device)[0] / _DEVICE_SHARE:
        return images
    return images.to(device)
