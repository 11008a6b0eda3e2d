r"""Arrays as NumPy writes them, .npy and .npz: numbers alone, since pickled objects would run code."""

from __future__ import annotations

import math
import mmap
import os
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from pyro_vae.errors import DataError

# A mapping of one's own that may be written counts against the memory, and is refused where it is larger than all of
# it, unless it has this flag; `mmap` names it from Python 3.13 on. The number is Linux's on x86 and ARM.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


class Header(NamedTuple):
    """What a .npy file says of its array."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype

    @property
    def size(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize

    def array(self, content: bytes | mmap.mmap, start: int = 0) -> np.ndarray:
        """Return the array whose bytes begin at `start`, without a copy."""
        numbers = np.frombuffer(content, self.dtype, math.prod(self.shape), start)
        return numbers.reshape(self.shape, order="F" if self.fortran else "C")


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
        found = _moderate(member, what)
        if found != Header(shape, False, np.dtype(np.uint8)):
            order = " in Fortran's order" if found.fortran else ""
            raise DataError(f"{what} is {found.dtype} {found.shape}{order} and must be uint8 {shape}; replace it.")
        yield from pieces_of(member, found, what, rows)


def pieces_of(file: IO[bytes], header: Header, what: str, rows: int) -> Iterator[np.ndarray]:
    """Yield an array in turn, as `read_pieces`.

    Args:
        file: just after its header.
        header: as `read_header` returns it, not in Fortran's order.
        what: an error calls it.
        rows: as of `read_pieces`.

    Raises:
        DataError: it is damaged.
    """
    width = math.prod(header.shape[1:]) * header.dtype.itemsize
    for piece in _content(file, what, header.size, rows * width):
        yield np.frombuffer(piece, header.dtype).reshape(-1, *header.shape[1:])


def read_array(file: IO[bytes], what: str) -> np.ndarray:
    """Read one array: its header first, which says how many bytes are to come and whether they are numbers.

    Args:
        file: whose next bytes are those of a .npy file.
        what: an error calls it.

    Raises:
        DataError: it is damaged, holds pickled objects, or more than half the memory.
    """
    header = _moderate(file, what)
    return header.array(b"".join(_content(file, what, header.size, header.size)))


def map_array(file: IO[bytes], what: str) -> np.ndarray:
    """Map one array, as `map_content`; arguments and errors as of `read_array`."""
    return map_content(file, _moderate(file, what), what)


def _open(archive: zipfile.ZipFile, path: Path, name: str) -> IO[bytes]:
    try:
        return archive.open(f"{name}.npy")
    except KeyError as error:
        raise DataError(f"{path} holds no {name}; replace it.") from error


def _moderate(file: IO[bytes], what: str) -> Header:
    """Read the header of an array that the memory has room for."""
    header = read_header(file, what)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if header.size > memory // 2:
        raise DataError(f"{what} takes {header.size / 2**30:.1f} GiB, and the memory is {memory / 2**30:.1f} GiB.")
    return header


def _content(file: IO[bytes], what: str, size: int, step: int) -> Iterator[bytes]:
    """Yield so many bytes in pieces, with nothing left behind them."""
    for start in range(0, size, max(step, 1)):
        piece = file.read(min(step, size - start))
        if len(piece) != min(step, size - start):
            raise DataError(f"{what} ends after {start + len(piece):,} of {size:,} bytes; repair or replace it.")
        yield piece
    if file.read(1):  # at the end of a member its check sum is compared
        raise DataError(f"{what} goes on after its array; repair or replace it.")


def read_header(file: IO[bytes], what: str) -> Header:
    """Read a header, up to the first byte of the array.

    Args:
        file: at its beginning.
        what: what an error calls the array.

    Raises:
        DataError: there is no header, or the array holds pickled objects.
        OSError, zipfile.BadZipFile, zlib.error: the file cannot be read.
    """
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        header = Header(*read(file))
    except (OSError, zipfile.BadZipFile, zlib.error):
        raise
    except Exception as error:  # of a parser of anybody's text
        raise DataError(f"{what} has no header of an array; repair or replace it.") from error
    if header.dtype.hasobject:
        raise DataError(f"{what} holds pickled objects, which are never read; save an array of numbers.")
    return header


def check_length(header: Header, found: int, what: str) -> None:
    """Refuse an array of which so many bytes were found.

    Raises:
        DataError: they are more or fewer than the header says.
    """
    if found != header.size:
        ends = f"ends after {found:,} of {header.size:,} bytes"
        raise DataError(f"{what} {ends if found < header.size else 'goes on after its array'}; repair or replace it.")


def map_content(file: IO[bytes], header: Header, what: str) -> np.ndarray:
    """Map the array of a file, whose pages are read when they are used and dropped when memory is short.

    It can be written to, which changes a page in memory and never the file, so that torch takes it without a warning.
    The file must not be overwritten while the array is in use.

    Args:
        file: on disk, just after its header.
        header: as `read_header` returns it.
        what: what an error calls the array.

    Raises:
        DataError: as `check_length`.
        OSError: the file cannot be mapped.
    """
    start = file.tell()
    check_length(header, os.fstat(file.fileno()).st_size - start, what)
    flags, protection = mmap.MAP_PRIVATE | _NO_RESERVE, mmap.PROT_READ | mmap.PROT_WRITE
    return header.array(mmap.mmap(file.fileno(), start + header.size, flags=flags, prot=protection), start)
