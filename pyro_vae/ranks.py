r"""Several processes that work as one, as torchrun starts them: their group, and the messages that they exchange.

The processes are numbered from 0; torch calls the number a rank. Without torchrun there is one process, of rank 0, and
every function here returns its argument. Objects are exchanged as pickles, between the processes of one group only.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_vae import torchrun
from pyro_vae.errors import RanksError
from pyro_vae.failures import Notes, lost_connections

T = TypeVar("T")

# Processes wait for each other as long as one of them computes, e.g. a fit of several days. The end of a process is
# noticed at once by its closed connections, and by torchrun.
_TIMEOUT = timedelta(days=30)

_SECONDS_TO_RELEASE = 0.2

_notes: Notes | None = None  # of the group, while `process_group` is entered
_alone = False  # while `alone` is entered


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Join the process group that torchrun describes, and leave it at the end. Without torchrun, do nothing.

    Args:
        device: Device of the computation, as in the configuration of a run. On CUDA, the current device of a process
            becomes the GPU with its local rank.

    Raises:
        RanksError: If the group cannot be joined, or there is no GPU for this process.
    """
    if not torchrun.launched():
        yield
        return
    cuda = torch.device(device).type == "cuda"
    if cuda:
        local, available = torchrun.local_rank(), torch.cuda.device_count()
        if local >= available:
            raise RanksError(f"Process {local} of this machine has no GPU, of {available}; start at most one per GPU.")
        torch.cuda.set_device(local)
    with lost_connections():
        store, rank, size = next(dist.rendezvous("env://", timeout=_TIMEOUT))
        store = dist.PrefixStore(f"attempt {torchrun.attempt()}", store)  # torchrun keeps it when it restarts processes
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"  # objects are exchanged through gloo on any device
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_TIMEOUT)
    notes = Notes(store, rank, size)
    try:
        with _joined_group(notes):
            yield
    except Exception as error:
        notes.compare(error)
        raise


@contextmanager
def _joined_group(notes: Notes) -> Iterator[None]:
    """Leave the group that has been joined at the end, and a note of the error if there is one."""
    global _notes
    _notes = notes
    try:
        yield
        # A process that ends early would close connections on which slower ones still wait for its last message. There
        # is nothing left that this could fail for.
        with suppress(RanksError):
            gather(None)
        # A thread of gloo releases the tensors of that message. For that it needs the interpreter, and aborts the
        # process if that has begun to shut down. Sleeping lets it run. After an error, the message comes at once.
        time.sleep(_SECONDS_TO_RELEASE)
    except Exception as error:
        notes.leave(error)
        raise
    finally:
        _notes = None
        dist.destroy_process_group()


@contextmanager
def alone() -> Iterator[None]:
    """Work as a single process: within, this is the only process of its group, and none waits for another."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if _in_group() else 0


def size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if _in_group() else 1


def is_first() -> bool:
    """Return whether this process has rank 0. It alone prints, and writes files."""
    return rank() == 0


def claims_to_speak() -> bool:
    """Return whether this process is to say why the group ends, see `Notes.claim`."""
    return _notes is None or _notes.claim()


def gather(value: T) -> list[T]:
    """Return the values of all processes by rank, on every process. CUDA tensors arrive on the own current device."""
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    with lost_connections():
        dist.all_gather_object(values, _leave_device(value))
    return [_enter_device(each) for each in values]


def broadcast(value: T) -> T:
    """Return the value of rank 0 on every process."""
    return gather(value if is_first() else None)[0]  # type: ignore[return-value]


def sum_flat(tensor: Tensor) -> None:
    """Add up a tensor over all processes, in place."""
    if size() > 1:
        with lost_connections():
            dist.all_reduce(tensor)


def gather_flat(tensor: Tensor) -> list[Tensor]:
    """Return the tensors of all processes by rank, which have the same shape; in one process, the tensor itself."""
    if size() == 1:
        return [tensor]
    gathered = [torch.empty_like(tensor) for _ in range(size())]
    with lost_connections():
        dist.all_gather(gathered, tensor)
    return gathered


class _FromCuda(NamedTuple):
    """A CUDA tensor on its way to the GPU of another process."""

    tensor: Tensor


def _leave_device(value: Any) -> Any:
    def leave(leaf: Any) -> Any:
        return _FromCuda(leaf.cpu()) if isinstance(leaf, Tensor) and leaf.is_cuda else leaf

    return pytree.tree_map(leave, value)


def _enter_device(value: Any) -> Any:
    def enter(leaf: Any) -> Any:
        return leaf.tensor.cuda() if isinstance(leaf, _FromCuda) else leaf

    return pytree.tree_map(enter, value, is_leaf=lambda leaf: isinstance(leaf, _FromCuda))


def _in_group() -> bool:
    # A group that the caller of the package has made may serve another purpose, e.g. separate fits in its processes.
    return _notes is not None and not _alone
