r"""NumPy files, .npy and .npz, as data sets. Only arrays of numbers are read, since unpickling objects could run code.

A .npz file contains x or images and optionally y or labels; or x_train and x_test and optionally y_train and y_test.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from pyro_vae.data import npy
from pyro_vae.data.assembly import from_arrays
from pyro_vae.data.collection import Collection
from pyro_vae.data.formats.cache import Ready, make_key
from pyro_vae.data.formats.keeping import Cache, ready_arrays
from pyro_vae.data.numbers import from_numbers
from pyro_vae.data.splits import OWN_SPLITS, Shares
from pyro_vae.errors import DataError

_LEVEL_ERROR = 0.07  # tolerance in levels, above the rounding error of k / 255 in half precision
_IMAGES, _LABELS = ("x", "images", "arr_0"), ("y", "labels", "arr_1")
_SPLIT = ("x_train", "x_test", "y_train", "y_test")
_PIECE = 2**24  # bytes per decoded chunk


def from_array_file(path: Path | str, *, splits: Shares = OWN_SPLITS, cache: Cache) -> Collection:
    """Read a .npy or .npz file of images (N, *pixels), uint8 or floats in [0, 1], or of numbers (N, columns).

    Color channels may come last, (N, height, width, 3), as is usual for arrays; they are moved before the height. With
    a cache, images are decoded into it in chunks, except for arrays in Fortran order and floats (N, columns), which may
    be numbers. Otherwise, a .npy file is memory-mapped while it is split, so that its images are in memory only once,
    and the arrays of a .npz file are loaded into memory.

    Args:
        path: Path of the file. Its type is recognized by its content, not by its name.
        splits: Fractions of training, validation and test images; see `from_arrays`.
        cache: Cache of decoded images.

    Raises:
        DataError: If the file cannot be read, is damaged, contains pickled objects or no array with one of these names,
            or takes more than half of the memory and is not cached; or if the data are invalid (see `from_arrays`).
    """
    path = Path(path)
    with npy.one_line(path), path.open("rb") as file:
        start = file.read(4)
        if start == b"\x93NUM":
            return _from(path, [_Array(str(path), lambda: path.open("rb"), npy.map_array), *[None] * 3], splits, cache)
        if start == b"PK\x03\x04":
            with zipfile.ZipFile(file) as archive:
                return _from(path, _members(archive, path), splits, cache)
    raise DataError(f"{path} is not a known file of arrays; give a .npy, a .npz, or a folder of images.")


class _Array(NamedTuple):
    """A lazily read array in a file."""

    what: str
    """Name of the array in error messages."""
    open: Callable[[], IO[bytes]]
    """Opens the file, or the member of an archive, in .npy format."""
    whole: Callable[[IO[bytes], str], np.ndarray] = npy.read_array

    def header(self) -> npy.Header:
        with self.open() as file:
            return npy.read_header(file, self.what)

    def read(self) -> np.ndarray:
        with self.open() as file:
            return self.whole(file, self.what)

    def pieces(self) -> Iterator[np.ndarray]:
        """Yield chunks of images, channels first."""
        with self.open() as file:
            header = npy.read_header(file, self.what)
            rows = max(1, _PIECE * header.shape[0] // header.size)
            yield from map(colors_first, npy.pieces_of(file, header, self.what, rows))


def _members(archive: zipfile.ZipFile, path: Path) -> list[_Array | None]:
    """Return training images, test images, training labels and test labels; None if absent."""
    members = archive.namelist()

    def find(*names: str) -> _Array | None:
        files = [f"{name}.npy" for name in names if f"{name}.npy" in members]
        return _Array(f"{path}: {files[0].removesuffix('.npy')}", partial(archive.open, files[0])) if files else None

    arrays = [find(name) for name in _SPLIT]
    if arrays[0] is None:
        arrays = [find(*_IMAGES), None, find(*_LABELS), None]
    if arrays[0] is None:
        names = ", ".join(sorted(members)[:5])
        raise DataError(f"{path} holds {names or 'nothing'}; name its images x, or x_train and x_test.")
    return arrays


def _from(path: Path, arrays: Sequence[_Array | None], splits: Shares, cache: Cache) -> Collection:
    """Read training images, test images and the labels of both. The cache is used only if they are certainly images."""
    headers = [array.header() for array in arrays[:2] if array]

    def labels() -> list[np.ndarray | None]:
        return [array and _flat(array.read()) for array in arrays[2:]]

    def decode(folder: Path, file: IO[bytes]) -> Ready:
        claimed = sum(math.prod(header.shape) for header in headers)
        if 2 * claimed > shutil.disk_usage(folder).free:  # a damaged header may claim far more than the file holds
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        train, test = (array and array.pieces() for array in arrays[:2])
        train_labels, test_labels = labels()
        return ready_arrays(file, (train, None, test), (train_labels, None, test_labels), splits, path.stem)

    if all(map(_are_images, headers)):
        kept = cache.images(path, partial(make_key, path, [path], ["arrays"], splits), decode)
        if kept is not None:
            return kept
    train, test = (array and colors_first(array.read()) for array in arrays[:2])
    assert train is not None
    train_labels, test_labels = labels()
    return data_set(train, test, labels=train_labels, test_labels=test_labels, splits=splits, name=path.stem)


def _are_images(header: npy.Header) -> bool:
    """Return whether an array certainly contains images, not a table of numbers, and can be read in chunks."""
    pixels = header.dtype == np.uint8 or (header.dtype.kind == "f" and len(header.shape) > 2)
    return pixels and len(header.shape) > 1 and header.size > 0 and not header.fortran


def data_set(train: np.ndarray, test: np.ndarray | None = None, **given: Any) -> Collection:
    """Return images, or a table if the rows (N, columns) are not gray levels. See `from_arrays` for the arguments."""
    if train.ndim == 2 and not all(_are_levels(part) for part in (train, test) if part is not None):
        return from_numbers(train, test, **given)
    return from_arrays(train, test, **given)


def _are_levels(rows: np.ndarray) -> bool:
    """Return whether rows (N, columns) are 8-bit pixels, stored as uint8 or as floats k / 255, and not numbers."""
    if rows.dtype == np.uint8:
        return True
    if rows.dtype.kind != "f" or not ((rows >= 0) & (rows <= 1)).all():
        return False
    levels = rows.astype(np.float64) * 255
    return bool((np.abs(levels - levels.round()) < _LEVEL_ERROR).all())


def _flat(labels: np.ndarray) -> np.ndarray:
    """Return labels (N, 1), the shape of CIFAR's, as (N,), and others unchanged."""
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def colors_first(images: np.ndarray) -> np.ndarray:
    """Return images (N, height, width, 1 or 3) with channels moved before the height, and others unchanged."""
    if images.ndim == 4 and images.shape[-1] in (1, 3) and images.shape[1] not in (1, 3):
        return np.ascontiguousarray(np.moveaxis(images, -1, 1))
    return images
