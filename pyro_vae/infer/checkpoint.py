r"""Checkpoints: written whole or not at all, loaded without running code."""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

_FORMAT = 1


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read; names the file."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a state of tensors and plain values, atomically: a kill leaves the old file or the new one.

    Raises:
        OSError: the folder cannot be written; an existing checkpoint is untouched.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save({"format": _FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote, onto the CPU; nothing in the file is executed.

    Raises:
        CheckpointError: the file is missing, damaged, of a newer format, or holds more than data.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch doubts aloud before it refuses a stranger's file
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Damaged bytes fail in a dozen ways, struct.error and UnicodeDecodeError among them.
        raise CheckpointError(f"{path} is not a readable checkpoint ({type(error).__name__}).") from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of format {_FORMAT}; another version wrote it.")
    return state
