r"""Atomic file writes, reading of files that another user may have made, and the identity of a run in its files."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyro_vae.config.saved import add_missing_fields
from pyro_vae.data import DATASETS

# Fields of a configuration that may change while a run continues.
_CHANGEABLE = ("epochs", "device", "data_root")
_PARTIAL = ".unfinished-"


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on exit, sync the file written there and rename it to `path`.

    A crash or a power failure leaves either the old file or the new one; an exception leaves the old one.

    Raises:
        OSError: If the folder cannot be written. `path` is unchanged, unless only the last step failed, the sync of the
            folder after the rename.
    """
    temporary = path.with_name(f"{_PARTIAL}{os.getpid()}-{path.name}")
    try:
        yield temporary
        _sync(temporary)  # before the rename, so that `path` never names an incomplete file
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def read_regular_file(path: Path) -> bytes:
    """Return the content of a file; opening a named pipe or a device, which might never end, raises OSError."""
    with open(path, "rb", opener=without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        return file.read()


def without_waiting(path: str, flags: int) -> int:
    """Open a file without blocking; opening a named pipe would otherwise wait for its writer."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a configuration, as JSON values, that a run keeps whenever it continues.

    Programs in files are identified by their factory only, and your own data by being that, since files can be moved.
    """
    kept = {name: value for name, value in add_missing_fields(config).items() if name not in _CHANGEABLE}
    if isinstance(program := kept.get("program"), str):
        kept["program"] = strip_folder(program)
    if isinstance(name := kept.get("data"), str) and name not in DATASETS:
        kept["data"] = "a path"
    return kept


def strip_folder(program: str) -> str:
    """Return ``:factory`` of a program path/to/file.py:factory, and the name of any other program unchanged."""
    return "".join(program.rpartition(":")[1:])


def is_partial(path: Path) -> bool:
    """Return whether a file is the temporary file of an atomic write, in progress or interrupted."""
    return path.name.startswith(_PARTIAL)


def remove_partial_files(folder: Path) -> None:
    """Remove the temporary files of interrupted writes. The caller must be the only writer of the folder."""
    for path in folder.glob(f"{_PARTIAL}*"):
        path.unlink()


def _sync(path: Path) -> None:
    try:
        # Windows syncs only files that are open for writing, and cannot open folders.
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except PermissionError:
        if path.is_dir():
            return
        raise
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
