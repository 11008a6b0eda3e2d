r"""stub"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    return rank() == 0


def gather(value: Any) -> list[Any]:
    if size() == 1:
        return [value]
    out = [None] * size()
    dist.all_gather_object(out, value)
    return out


def broadcast(value: Any) -> Any:
    if size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def sum_flat(tensor: torch.Tensor) -> None:
    """Replace a tensor by its sum over all processes."""
    if size() > 1:
        dist.all_reduce(tensor)
