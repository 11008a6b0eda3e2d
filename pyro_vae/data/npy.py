r"""Arrays as NumPy writes them, .npy and .npz: numbers alone, since pickled objects would run code."""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from pyro_vae.errors import DataError


@contextmanager
def one_line(path: Path) -> Iterator[None]:
    """Turn what a damaged file or archive raises into a DataError that names the file."""
    try:
        yield
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read ({' '.join(str(error).split())[:120]}); repair or replace it."
        ) from error


@contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a .npz file for `read_member` and `read_pieces`.

    Raises:
        DataError: here or within the block, the file cannot be read.
    """
    with one_line(path), zipfile.ZipFile(path) as archive:
        yield archive


def read_member(archive: zipfile.ZipFile, path: Path, name: str) -> np.ndarray:
    """Return one array of an archive.

    Raises:
        DataError: it is absent, damaged or no array of numbers.
    """
    with _open(archive, path, name) as member:
        return read_array(member, f"{path}: {name}")


def read_pieces(
    archive: zipfile.ZipFile, path: Path, name: str, shape: tuple[int, ...], rows: int
) -> Iterator[np.ndarray]:
    """Yield an array of bytes in turn, so that it is never there as a whole.

    Args:
        archive: what holds it.
        path: of the archive.
        name: of the array.
        shape: that it must have.
        rows: how many of its first dimension a piece has; the last has those that remain.

    Raises:
        DataError: as `read_member`, or the array is no such one.
    """
    with _open(archive, path, name) as member:
        what = f"{path}: {name}"
        found, fortran, dtype = _header(member, what)
        if found != shape or dtype != np.uint8 or fortran:
            order = " in Fortran's order" if fortran else ""
            raise DataError(f"{what} is {dtype} {found}{order} and must be uint8 {shape}; replace it.")
        width = math.prod(shape[1:])
        for piece in _content(member, what, shape[0] * width, rows * width):
            yield np.frombuffer(piece, np.uint8).reshape(-1, *shape[1:])


def read_array(file: IO[bytes], what: str) -> np.ndarray:
    """Read one array: its header first, which says how many bytes are to come and whether they are numbers.

    Args:
        file: whose next bytes are those of a .npy file.
        what: an error calls it.

    Raises:
        DataError: it is damaged, holds pickled objects, or more than half the memory.
    """
    shape, fortran, dtype = _header(file, what)
    size = math.prod(shape) * dtype.itemsize
    content = b"".join(_content(file, what, size, size))
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _open(archive: zipfile.ZipFile, path: Path, name: str) -> IO[bytes]:
    try:
        return archive.open(f"{name}.npy")
    except KeyError as error:
        raise DataError(f"{path} holds no {name}; replace it.") from error


def _header(file: IO[bytes], what: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return the shape, whether the first index runs fastest, and the type."""
    try:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(file)
    except (OSError, zipfile.BadZipFile, zlib.error):
        raise
    except Exception as error:  # of a parser of anybody's text
        raise DataError(f"{what} has no header of an array; repair or replace it.") from error
    if dtype.hasobject:
        raise DataError(f"{what} holds pickled objects, which are never read; save an array of numbers.")
    size = math.prod(shape) * dtype.itemsize
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory // 2:
        raise DataError(f"{what} takes {size / 2**30:.1f} GiB, and the memory is {memory / 2**30:.1f} GiB.")
    return shape, fortran, dtype


def _content(file: IO[bytes], what: str, size: int, step: int) -> Iterator[bytes]:
    """Yield so many bytes in pieces, with nothing left behind them."""
    for start in range(0, size, max(step, 1)):
        piece = file.read(min(step, size - start))
        if len(piece) != min(step, size - start):
            raise DataError(f"{what} ends after {start + len(piece):,} of {size:,} bytes; repair or replace it.")
        yield piece
    if file.read(1):  # at the end of a member its check sum is compared
        raise DataError(f"{what} goes on after its array; repair or replace it.")
