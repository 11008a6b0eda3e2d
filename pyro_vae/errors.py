r"""The errors that a user can cause, which scripts report in one line, and the want of memory."""

from __future__ import annotations

import torch


class UserError(ValueError):
    """Bad input: says what, where, and what to do. Any other ValueError is a defect and keeps its traceback."""


class DataError(UserError):
    """Images that cannot be used; says which and what to do."""


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read; names the file."""


class NonFiniteError(FloatingPointError):
    """A loss or a gradient that is not finite; the weights are those before the step it names, which is `step`."""

    def __init__(self, step: int) -> None:
        super().__init__(
            f"The loss or a gradient is not finite at step {step} (steps count from 0); the weights are "
            "those before it. Lower the learning rate, or look for extreme values in the data."
        )
        self.step = step


class OutOfMemoryError(MemoryError):
    """A step for which there is not enough memory; says which batch size to try."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error is the want of memory on a device or, by torch's allocator, on the host."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
