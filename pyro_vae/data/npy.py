r"""NumPy arrays in .npy and .npz files. Only numbers are read, since unpickling objects could run code."""

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

from pyro_vae import memory
from pyro_vae.errors import DataError

# A private writable mapping counts against the memory, and fails if it is larger than that, unless this flag is set.
# `mmap` defines the flag from Python 3.13 on; the number is that of Linux on x86 and ARM.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


class Header(NamedTuple):
    """Header of a .npy file: shape, memory order and dtype of the array."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype

    @property
    def size(self) -> int:
        """Size of the array in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def array(self, content: bytes | mmap.mmap, start: int = 0) -> np.ndarray:
        """Return the array whose content begins at byte `start`, without a copy."""
        numbers = np.frombuffer(content, self.dtype, math.prod(self.shape), start)
        return numbers.reshape(self.shape, order="F" if self.fortran else "C")


@contextmanager
def one_line(path: Path) -> Iterator[None]:
    """Convert errors of damaged files and archives to a one-line DataError that names the file."""
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
        DataError: If the file cannot be read, now or inside the block.
    """
    with one_line(path), zipfile.ZipFile(path) as archive:
        yield archive


def read_member(archive: zipfile.ZipFile, path: Path, name: str) -> np.ndarray:
    """Return an array of an archive.

    Raises:
        DataError: If the array is missing, damaged or not numbers.
    """
    with _open(archive, path, name) as member:
        return read_array(member, f"{path}: {name}")


def read_pieces(
    archive: zipfile.ZipFile, path: Path, name: str, shape: tuple[int, ...], rows: int
) -> Iterator[np.ndarray]:
    """Yield a uint8 array in chunks, so that it is never in memory as a whole.

    Args:
        archive: Archive that contains the array.
        path: Path of the archive, for error messages.
        name: Name of the array.
        shape: Required shape.
        rows: Number of rows (along the first dimension) per chunk. The last chunk may be smaller.

    Raises:
        DataError: If the array is missing or damaged, or has another shape, order or dtype.
    """
    with _open(archive, path, name) as member:
        what = f"{path}: {name}"
        header = _moderate(member, what)
        if header != Header(shape, False, np.dtype(np.uint8)):
            order = " in Fortran order" if header.fortran else ""
            raise DataError(f"{what} is {header.dtype} {header.shape}{order} and must be uint8 {shape}; replace it.")
        yield from pieces_of(member, header, what, rows)


def pieces_of(file: IO[bytes], header: Header, what: str, rows: int) -> Iterator[np.ndarray]:
    """Yield an array in chunks.

    Args:
        file: File, positioned after the header.
        header: Header of the array, which must not be in Fortran order.
        what: Name of the array in error messages.
        rows: Number of rows per chunk, as in `read_pieces`.

    Raises:
        DataError: If the content is truncated or followed by other bytes.
    """
    width = math.prod(header.shape[1:]) * header.dtype.itemsize
    for piece in _content(file, what, header.size, rows * width):
        yield np.frombuffer(piece, header.dtype).reshape(-1, *header.shape[1:])


def read_array(file: IO[bytes], what: str) -> np.ndarray:
    """Read an array. Its header is read first, to check the dtype and the size before memory is allocated.

    Args:
        file: File, positioned at the beginning of the .npy content.
        what: Name of the array in error messages.

    Raises:
        DataError: If the content is damaged, contains pickled objects, or takes more than half of the memory.
    """
    header = _moderate(file, what)
    return header.array(b"".join(_content(file, what, header.size, header.size)))


def map_array(file: IO[bytes], what: str) -> np.ndarray:
    """Memory-map an array; see `map_content`. The arguments and errors are those of `read_array`."""
    return map_content(file, _moderate(file, what), what)


def _open(archive: zipfile.ZipFile, path: Path, name: str) -> IO[bytes]:
    try:
        return archive.open(f"{name}.npy")
    except KeyError as error:
        raise DataError(f"{path} holds no {name}; replace it.") from error


def _moderate(file: IO[bytes], what: str) -> Header:
    """Read a header, and check that the array takes at most half of the memory."""
    header = read_header(file, what)
    total = memory.total()
    if total is not None and header.size > total // 2:
        raise DataError(f"{what} takes {header.size / 2**30:.1f} GiB, but the memory is {total / 2**30:.1f} GiB.")
    return header


def _content(file: IO[bytes], what: str, size: int, step: int) -> Iterator[bytes]:
    """Yield `size` bytes in chunks of `step`, and check that the file ends after them."""
    for start in range(0, size, max(step, 1)):
        piece = file.read(min(step, size - start))
        if len(piece) != min(step, size - start):
            raise DataError(f"{what} ends after {start + len(piece):,} of {size:,} bytes; repair or replace it.")
        yield piece
    if file.read(1):  # this read also makes an archive verify the checksum of the member
        raise DataError(f"{what} has trailing bytes after its array; repair or replace it.")


def read_header(file: IO[bytes], what: str) -> Header:
    """Read a header, up to the first byte of the content.

    Args:
        file: File, positioned at its beginning.
        what: Name of the array in error messages.

    Raises:
        DataError: If there is no valid header, or the array contains pickled objects.
        OSError, zipfile.BadZipFile, zlib.error: If the file cannot be read.
    """
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        header = Header(*read(file))
    except (OSError, zipfile.BadZipFile, zlib.error):
        raise
    except Exception as error:  # the parser may raise anything for untrusted text
        raise DataError(f"{what} has no header of an array; repair or replace it.") from error
    if header.dtype.hasobject:
        raise DataError(f"{what} holds pickled objects, which are never read; save an array of numbers.")
    return header


def check_length(header: Header, num_bytes: int, what: str) -> None:
    """Check the size of the content of an array.

    Raises:
        DataError: If `num_bytes` differs from the size in the header.
    """
    if num_bytes != header.size:
        ends = f"ends after {num_bytes:,} of {header.size:,} bytes"
        problem = ends if num_bytes < header.size else "has trailing bytes after its array"
        raise DataError(f"{what} {problem}; repair or replace it.")


def map_content(file: IO[bytes], header: Header, what: str) -> np.ndarray:
    """Memory-map the array of a file. Its pages are loaded on use and dropped when memory is short.

    The array is writable, so that torch accepts it without a warning. Writing changes a page in memory, never the file.
    The file must not be overwritten while the array is in use.

    Args:
        file: File on disk, positioned after the header.
        header: Header of the array, as returned by `read_header`.
        what: Name of the array in error messages.

    Raises:
        DataError: If the file is shorter or longer than the header specifies.
        OSError: If the file cannot be mapped.
    """
    start = file.tell()
    check_length(header, os.fstat(file.fileno()).st_size - start, what)
    flags, protection = mmap.MAP_PRIVATE | _NO_RESERVE, mmap.PROT_READ | mmap.PROT_WRITE
    return header.array(mmap.mmap(file.fileno(), start + header.size, flags=flags, prot=protection), start)
