r"""Checkpoints: written whole or not at all, loaded only undamaged, and read as data alone.

A file is in the safetensors format: tensors, and JSON that says where each stands in the state. Nothing in it can
name code, and its sizes are checked against its length before anything is allocated. The SHA-256 of the file, taken
with zeros in the place of the digest, stands in its header.
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
from pyro_vae.runs.files import atomic_write

_FORMAT = 2
_KEY = "pyro_vae"
_BLANK = "0" * 64
_DIGEST = re.compile(rb'\\"sha256\\": \\"([0-9a-f]{64})\\"')
_DIGEST_ENDS_BEFORE = 200  # it follows the first few words of the header

State = dict[str, Any]


def save(path: Path, state: State) -> None:
    """Write a state of tensors and plain values, atomically: a kill leaves the old file or the new one.

    Raises:
        OSError: the folder cannot be written; an existing checkpoint is untouched.
        TypeError: the state holds something else; likewise.
    """
    tensors: dict[str, Tensor] = {}
    tree = {"format": _FORMAT, "sha256": _BLANK, "state": _pack(state, tensors)}
    blank = safetensors.torch.save(tensors, {_KEY: json.dumps(tree)})
    start, _, digest = _digest(blank) or (0, b"", b"")
    with atomic_write(path) as temporary:
        temporary.write_bytes(blank[:start] + digest + blank[start + len(digest) :])


def load(path: Path) -> State:
    """Read what `save` wrote, onto the CPU.

    Raises:
        CheckpointError: the file is missing, damaged, of another format, or no checkpoint.
    """
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            start = file.read(_DIGEST_ENDS_BEFORE) if regular else b""
            content = start + file.read() if _DIGEST.search(start) else start  # all of it, if it is one
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}).") from error
    except MemoryError as error:
        raise CheckpointError(f"{path} is larger than the memory.") from error
    digests = _digest(content)
    if digests is None:
        raise CheckpointError(f"{path} is not a checkpoint.")
    _, written, computed = digests
    if written != computed:
        raise CheckpointError(f"{path} is damaged: its bytes are not those that were written.")
    try:
        size = int.from_bytes(content[:8], "little")
        tree = json.loads(json.loads(content[8 : 8 + size])["__metadata__"][_KEY])
        if (version := tree["format"]) == _FORMAT:
            return _unpack(tree["state"], safetensors.torch.load(content))
    except Exception as error:  # a digest that is right says nothing about who has made the file
        raise CheckpointError(f"{path} is not a checkpoint ({type(error).__name__}).") from error
    raise CheckpointError(f"{path} has format {version}, and this version reads {_FORMAT}; another version wrote it.")


def _without_waiting(path: str, flags: int) -> int:
    """Open a file that may be a pipe, which would wait for its writer."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _digest(content: bytes) -> tuple[int, bytes, bytes] | None:
    """Return where the digest of a file stands, the one written there, and that of its bytes; None without one."""
    match = _DIGEST.search(content, 0, _DIGEST_ENDS_BEFORE)
    if match is None:
        return None
    view = memoryview(content)
    computed = hashlib.sha256(view[: match.start(1)])
    computed.update(_BLANK.encode())
    computed.update(view[match.end(1) :])
    return match.start(1), match[1], computed.hexdigest().encode()


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return a value as JSON, with the tensors in it by number."""
    if isinstance(value, Tensor):
        # A clone, since the format has no tensors that share memory, as those of two modules may.
        tensors[name := str(len(tensors))] = value.detach().cpu().clone().contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _pack(entry, tensors)] for key, entry in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_pack(entry, tensors) for entry in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"A checkpoint holds tensors and plain values, not {type(value).__name__}.")


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unpack(entry, tensors) for key, entry in content}
    return {"list": list, "tuple": tuple}[kind](_unpack(entry, tensors) for entry in content)
