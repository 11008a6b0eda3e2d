r"""Errors that users can cause, which scripts report in one line, and detection of out-of-memory errors."""

from __future__ import annotations

import copy
import sys
import traceback
from typing import Any

import torch

# Largest count. Products of a few counts, e.g. the entries of a matrix, then fit the 64 bits of a tensor's size.
MOST = 2**31 - 1
_SEEDS = 2**32  # number of seeds that NumPy's generator accepts
PROGRAM = "pyro_vae_program_"  # prefix of the name of the module of such a file
_SIMPLE = (str, int, float, type(None))  # arguments of an exception that are sent to other processes


class UserError(ValueError):
    """Invalid input. The message states the problem, its location and a remedy.

    Any other `ValueError` is a bug in the program, so scripts show its traceback.
    """


class DataError(UserError):
    """Unusable images or tables. The message names them and suggests a remedy."""


class CheckpointError(RuntimeError):
    """Unreadable checkpoint. The message names the file."""


class FigureError(RuntimeError):
    """Figures that could not be drawn, although all numbers are written. The message names them."""


class NonFiniteError(FloatingPointError):
    """Non-finite loss or gradient at step `step`. The weights are those before that step."""

    def __init__(self, step: int) -> None:
        super().__init__(
            f"Non-finite loss or gradient at step {step} (counted from 0); the weights are those before that step. "
            "Lower the learning rate, or check the data for extreme values."
        )
        self.step = step

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy by the step, which the constructor takes, rather than by the message."""
        return NonFiniteError, (self.step,), self.__dict__


class RanksError(RuntimeError):
    """The processes of a group cannot work together, usually because one has ended. The message states the cause."""


class OutOfMemoryError(MemoryError):
    """Out of memory in a training step. The message suggests a smaller batch size."""


# Memory that was full before torch could allocate any: another process may hold it; and tensors with more elements than
# any memory has bytes.
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Storage size calculation overflowed",
    "numel: integer multiplication overflow",
)
# From the driver, the runtime and torch, if there is no usable device or it has failed.
_DEVICE = ("CUDA error", "CUDA driver", "NVIDIA driver", "No CUDA GPUs", "CUDA-capable device")
# CUDA errors that a wrong operation causes on a working device.
_DEFECTS = ("device-side assert", "illegal", "invalid", "misaligned")


def check_count(name: str, value: int, least: int = 0, most: int = MOST) -> None:
    """Raise UserError, which names the flag or argument, if an integer is out of range."""
    if value < least:
        raise UserError(f"{name} is {value}; it must be at least {least}.")
    if value > most:
        raise UserError(f"{name} is {value}; it must be at most {most}.")


def check_seed(name: str, seed: int) -> None:
    """Raise UserError, which names the flag or argument, if a random seed is negative or has more than 32 bits."""
    if not 0 <= seed < _SEEDS:
        raise UserError(f"{name} is {seed}; it must be between 0 and {_SEEDS - 1}.")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether torch failed to allocate memory, on a device or (by its CPU allocator) on the host."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY)


def is_device_failure(error: BaseException) -> bool:
    """Return whether a device is missing, unusable or lost. CUDA errors that a wrong operation causes do not count."""
    message = str(error)
    named = isinstance(error, torch.AcceleratorError) or any(words in message for words in _DEVICE)
    return named and not any(words in message for words in _DEFECTS)


def place_in_program(error: BaseException) -> str:
    """Return the file and the line at which an error has left your own program (--program), or an empty string."""
    frames = traceback.walk_tb(error.__traceback__)
    places = [(f.f_code.co_filename, line) for f, line in frames if f.f_globals.get("__name__", "").startswith(PROGRAM)]
    return " (at {}, line {})".format(*places[-1]) if places else ""


def with_notes(error: BaseException) -> str:
    """Return the message of an error followed by its notes."""
    return " ".join([str(error), *getattr(error, "__notes__", [])])


def rebuildable(error: Exception) -> Exception:
    """Return an exception that other processes can rebuild: a copy, or one of a base class with the same message."""
    for kind in type(error).__mro__:
        try:
            same = copy.copy(error) if kind is type(error) else kind(str(error))
            kept = [*same.args, *(value for name, value in vars(same).items() if name != "__notes__")]
            if kind is not type(error):
                same.__notes__ = getattr(error, "__notes__", [])
            importable = getattr(sys.modules[kind.__module__], kind.__qualname__, None) is kind
        except Exception:  # noqa: BLE001 -- e.g. a constructor with other arguments
            continue
        if importable and str(same) == str(error) and all(isinstance(value, _SIMPLE) for value in kept):
            return same
    return RuntimeError(f"{type(error).__name__}: {error}")
