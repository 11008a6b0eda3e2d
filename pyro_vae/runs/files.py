r"""Files written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PARTIAL = ".unfinished-"


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a path to write a file to, which takes the place of `path` in one instant once it is whole and on disk.

    A kill or a loss of power at any moment leaves the old file or the new one; an exception leaves the old one.

    Raises:
        OSError: the folder cannot be written; `path` is untouched, but for a failure in the very last step, which
            makes the new name durable.
    """
    temporary = path.with_name(f"{_PARTIAL}{os.getpid()}-{path.name}")
    try:
        yield temporary
        _sync(temporary)  # before the name, lest the name outlive the bytes
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def strip_folder(program: str) -> str:
    """Return what tells a program in a file, path/to/file.py:factory, wherever the file lies: its factory."""
    return "".join(program.rpartition(":")[1:])


def is_partial(path: Path) -> bool:
    """Return whether a file is one that is being written, or was when a kill came."""
    return path.name.startswith(_PARTIAL)


def remove_partial_files(folder: Path) -> None:
    """Remove what a kill has left of files being written; nobody else may be writing to the folder."""
    for path in folder.glob(f"{_PARTIAL}*"):
        path.unlink()


def _sync(path: Path) -> None:
    try:
        # A file that is to be synced must be open for writing on Windows, where a folder cannot be opened at all.
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except PermissionError:
        if path.is_dir():
            return
        raise
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
