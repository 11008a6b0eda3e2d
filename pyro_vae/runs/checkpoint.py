r"""Checkpoint files: written atomically, verified by a digest, and free of code.

A checkpoint is a safetensors file: the tensors of a state, and a JSON tree in the metadata that describes the state and
refers to the tensors by name. The format cannot reference code, and the claimed sizes are checked against the file
length before any tensor is allocated. The header contains the SHA-256 of the file, computed with zeros in the field of
the digest.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from pyro_vae.errors import CheckpointError
from pyro_vae.runs.files import atomic_write, without_waiting

_FORMAT = 2
_KEY = "pyro_vae"
_BLANK = "0" * 64
_DIGEST = re.compile(rb'\\"sha256\\": \\"([0-9a-f]{64})\\"')
_DIGEST_ENDS_BEFORE = 200  # bytes: the field of the digest follows the first words of the header

State = dict[str, Any]


def save(path: Path, state: State) -> None:
    """Write a state atomically: an interruption leaves either the old file or the new one.

    Args:
        path: File to write or replace.
        state: Tensors and plain values, in nested dictionaries, lists and tuples.

    Raises:
        OSError: If the folder cannot be written. An existing checkpoint is unchanged.
        TypeError: If the state contains a value of another type. An existing checkpoint is unchanged.
    """
    tensors: dict[str, Tensor] = {}
    tree = {"format": _FORMAT, "sha256": _BLANK, "state": _pack(state, tensors)}
    blank = safetensors.torch.save(tensors, {_KEY: json.dumps(tree)})
    start, _, digest = _digest(blank) or (0, b"", b"")
    with atomic_write(path) as temporary:
        temporary.write_bytes(blank[:start] + digest + blank[start + len(digest) :])


def load(path: Path) -> State:
    """Load a state that `save` wrote, with all tensors on the CPU.

    Raises:
        CheckpointError: If the file is missing, damaged, in another format version, or not a checkpoint.
    """
    try:
        with open(path, "rb", opener=without_waiting) as file:
            regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            start = file.read(_DIGEST_ENDS_BEFORE) if regular else b""
            content = start + file.read() if _DIGEST.search(start) else start  # read the rest of checkpoints only
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}).") from error
    except MemoryError as error:
        raise CheckpointError(f"{path} does not fit into memory.") from error
    digests = _digest(content)
    if digests is None:
        raise CheckpointError(f"{path} is not a checkpoint.")
    _, written, computed = digests
    if written != computed:
        raise CheckpointError(f"{path} is damaged: its digest does not match its content.")
    try:
        size = int.from_bytes(content[:8], "little")
        tree = json.loads(json.loads(content[8 : 8 + size])["__metadata__"][_KEY])
        if (version := tree["format"]) == _FORMAT:
            return _unpack(tree["state"], safetensors.torch.load(content))
    except Exception as error:  # a valid digest does not make the file trustworthy: its content may be anything
        raise CheckpointError(f"{path} is not a checkpoint ({type(error).__name__}).") from error
    raise CheckpointError(f"{path} has format {version}, but this version of pyro_vae reads only format {_FORMAT}.")


def _digest(content: bytes) -> tuple[int, bytes, bytes] | None:
    """Return the offset of the digest, the stored digest and the computed one, or None if no digest is stored."""
    match = _DIGEST.search(content, 0, _DIGEST_ENDS_BEFORE)
    if match is None:
        return None
    view = memoryview(content)
    computed = hashlib.sha256(view[: match.start(1)])
    computed.update(_BLANK.encode())
    computed.update(view[match.end(1) :])
    return match.start(1), match[1], computed.hexdigest().encode()


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Convert a value to JSON, and move its tensors to `tensors` under consecutive numbers."""
    if isinstance(value, Tensor):
        # Clone, because safetensors rejects tensors that share storage, such as tied weights.
        tensors[name := str(len(tensors))] = value.detach().cpu().clone().contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _pack(entry, tensors)] for key, entry in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_pack(entry, tensors) for entry in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"A checkpoint can contain tensors and plain values, not {type(value).__name__}.")


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unpack(entry, tensors) for key, entry in content}
    return {"list": list, "tuple": tuple}[kind](_unpack(entry, tensors) for entry in content)
