r"""Files of NumPy arrays as data sets, .npy and .npz: numbers alone, since pickled objects would run code.

A .npz holds x or images, with y or labels beside them if there are some; or x_train and x_test, and y_train and y_test.
"""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from pyro_vae.data.collection import Collection
from pyro_vae.data.numbers import from_numbers
from pyro_vae.data.own import from_arrays
from pyro_vae.data.splits import OWN_SPLITS, Shares
from pyro_vae.errors import DataError

_LEVEL_ERROR = 0.07  # of a level k / 255 in half precision
_IMAGES, _LABELS = ("x", "images", "arr_0"), ("y", "labels", "arr_1")
_SPLIT = ("x_train", "x_test", "y_train", "y_test")


def from_array_file(path: Path | str, *, splits: Shares = OWN_SPLITS) -> Collection:
    """Read a .npy or .npz file of images (N, *pixels), uint8 or floats in [0, 1], or of numbers (N, columns).

    Colors may stand last, (N, height, width, 3), as is usual for arrays; they are moved before the height.

    Args:
        path: of the file, which is known by what it holds, whatever its name.
        splits: shares of training, validation and test images; see `from_arrays`.

    Raises:
        DataError: the file cannot be read, is damaged, holds pickled objects, more than half the memory or nothing of a
            known name; or as `from_arrays`.
    """
    path = Path(path)
    with _read_whole(path), path.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        if start == b"\x93NUM":
            return _data_set(_colors_first(_read(file, path)), splits=splits, name=path.stem)
        if start == b"PK\x03\x04":
            with zipfile.ZipFile(file) as archive:
                return _from_archive({each.filename: each for each in archive.infolist()}, archive, path, splits)
    raise DataError(f"{path} is no file of arrays that is known; give a .npy, a .npz, or a folder of images.")


@contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a .npz file for `read_member` and `read_pieces`.

    Raises:
        DataError: here or within the block, the file cannot be read.
    """
    with _read_whole(path), zipfile.ZipFile(path) as archive:
        yield archive


def read_member(archive: zipfile.ZipFile, path: Path, name: str) -> np.ndarray:
    """Return one array of an archive.

    Raises:
        DataError: it is absent, damaged or no array of numbers.
    """
    with _open(archive, path, name) as member:
        return _read(member, path, name)


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


@contextmanager
def _read_whole(path: Path) -> Iterator[None]:
    """Turn what a damaged file or archive raises into one line."""
    try:
        yield
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read ({' '.join(str(error).split())[:120]}); repair or replace it."
        ) from error


def _open(archive: zipfile.ZipFile, path: Path, name: str) -> IO[bytes]:
    try:
        return archive.open(f"{name}.npy")
    except KeyError as error:
        raise DataError(f"{path} holds no {name}; replace it.") from error


def _from_archive(
    members: Mapping[str, zipfile.ZipInfo], archive: zipfile.ZipFile, path: Path, splits: Shares
) -> Collection:
    def read(*names: str) -> np.ndarray | None:
        there = [name for name in names if f"{name}.npy" in members]
        if not there:
            return None
        with archive.open(members[f"{there[0]}.npy"]) as member:
            return _read(member, path, there[0])

    train, test, labels, test_labels = (read(name) for name in _SPLIT)
    if train is None:
        train, labels, test_labels = read(*_IMAGES), read(*_LABELS), None
    if train is None:
        names = ", ".join(sorted(members)[:5])
        raise DataError(f"{path} holds {names or 'nothing'}; name its images x, or x_train and x_test.")
    test = None if test is None else _colors_first(test)
    return _data_set(
        _colors_first(train), test, labels=_flat(labels), test_labels=_flat(test_labels), splits=splits, name=path.stem
    )


def _data_set(train: np.ndarray, test: np.ndarray | None = None, **given: Any) -> Collection:
    if train.ndim == 2 and not _are_levels(train):
        return from_numbers(train, test, **given)
    return from_arrays(train, test, **given)


def _are_levels(rows: np.ndarray) -> bool:
    """Whether rows (N, columns) are pixels of 8 bits, as these or as floats in [0, 1], and not numbers in general."""
    if rows.dtype == np.uint8:
        return True
    if rows.dtype.kind != "f" or not ((rows >= 0) & (rows <= 1)).all():
        return False
    levels = rows.astype(np.float64) * 255
    return bool((np.abs(levels - levels.round()) < _LEVEL_ERROR).all())


def _flat(labels: np.ndarray | None) -> np.ndarray | None:
    """Return labels (N, 1), as CIFAR's come, as (N,)."""
    return labels[:, 0] if labels is not None and labels.ndim == 2 and labels.shape[1] == 1 else labels


def _colors_first(images: np.ndarray) -> np.ndarray:
    if images.ndim == 4 and images.shape[-1] in (1, 3) and images.shape[1] not in (1, 3):
        return np.ascontiguousarray(np.moveaxis(images, -1, 1))
    return images


def _read(file: IO[bytes], path: Path, name: str = "") -> np.ndarray:
    """Read one array: its header first, which says how many bytes are to come and whether they are numbers."""
    what = f"{path}: {name}" if name else str(path)
    shape, fortran, dtype = _header(file, what)
    size = math.prod(shape) * dtype.itemsize
    content = b"".join(_content(file, what, size, size))
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


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
