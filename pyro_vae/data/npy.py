r"""Files of one NumPy array, .npy: the header checked, then the numbers mapped into memory, not read."""

from __future__ import annotations

import math
import mmap
import os
import sys
import zipfile
import zlib
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


def mapped(file: IO[bytes], header: Header, what: str) -> np.ndarray:
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
