r"""Errors that users can cause, which scripts report in one line, and detection of out-of-memory errors."""

from __future__ import annotations

import torch


class UserError(ValueError):
    """Invalid input. The message states the problem, its location and a remedy.

    Any other `ValueError` is a bug in the program, so scripts show its traceback.
    """


class DataError(UserError):
    """Unusable images or tables. The message names them and suggests a remedy."""


class CheckpointError(RuntimeError):
    """Unreadable checkpoint. The message names the file."""


class NonFiniteError(FloatingPointError):
    """Non-finite loss or gradient at step `step`. The weights are those before that step."""

    def __init__(self, step: int) -> None:
        super().__init__(
            f"Non-finite loss or gradient at step {step} (counted from 0); the weights are those before that step. "
            "Lower the learning rate, or check the data for extreme values."
        )
        self.step = step


class OutOfMemoryError(MemoryError):
    """Out of memory in a training step. The message suggests a smaller batch size."""


# Memory that was full before torch could allocate any: another process may hold it.
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
# From the driver, the runtime and torch, if there is no usable device or it has failed.
_DEVICE = ("CUDA error", "CUDA driver", "NVIDIA driver", "No CUDA GPUs", "CUDA-capable device")
# CUDA errors that a wrong operation causes on a working device.
_DEFECTS = ("device-side assert", "illegal", "invalid", "misaligned")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether torch failed to allocate memory, on a device or (by its CPU allocator) on the host."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY)


def is_device_failure(error: BaseException) -> bool:
    """Return whether a device is missing, unusable or lost. CUDA errors that a wrong operation causes do not count."""
    message = str(error)
    named = isinstance(error, torch.AcceleratorError) or any(words in message for words in _DEVICE)
    return named and not any(words in message for words in _DEFECTS)
