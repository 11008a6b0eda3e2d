r"""Files of NumPy arrays as data sets, .npy and .npz: numbers alone, since pickled objects would run code.

A .npz holds x or images, with y or labels beside them if there are some; or x_train and x_test, and y_train and y_test.
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

_LEVEL_ERROR = 0.07  # of a level k / 255 in half precision
_IMAGES, _LABELS = ("x", "images", "arr_0"), ("y", "labels", "arr_1")
_SPLIT = ("x_train", "x_test", "y_train", "y_test")
_PIECE = 2**24  # bytes that are decoded at a time


def from_array_file(path: Path | str, *, splits: Shares = OWN_SPLITS, cache: Cache) -> Collection:
    """Read a .npy or .npz file of images (N, *pixels), uint8 or floats in [0, 1], or of numbers (N, columns).

    Colors may stand last, (N, height, width, 3), as is usual for arrays; they are moved before the height. With a
    cache, images are decoded in pieces into it, unless they are in Fortran's order or floats (N, columns), which may be
    numbers. Otherwise a .npy is mapped while it is split, so that its images are in memory once; the arrays of a .npz
    are read first.

    Args:
        path: of the file, which is known by what it holds, whatever its name.
        splits: shares of training, validation and test images; see `from_arrays`.
        cache: of images.

    Raises:
        DataError: the file cannot be read, is damaged, holds pickled objects, more than half the memory, unless it goes
            into the cache, or nothing of a known name; or as `from_arrays`.
    """
    path = Path(path)
    with npy.one_line(path), path.open("rb") as file:
        start = file.read(4)
        if start == b"\x93NUM":
            return _from(path, [_Array(str(path), lambda: path.open("rb"), npy.map_array), *[None] * 3], splits, cache)
        if start == b"PK\x03\x04":
            with zipfile.ZipFile(file) as archive:
                return _from(path, _members(archive, path), splits, cache)
    raise DataError(f"{path} is no file of arrays that is known; give a .npy, a .npz, or a folder of images.")


class _Array(NamedTuple):
    """An array in a file that is not read yet."""

    what: str
    """What an error calls it."""
    open: Callable[[], IO[bytes]]
    """Opens a .npy file."""
    whole: Callable[[IO[bytes], str], np.ndarray] = npy.read_array

    def header(self) -> npy.Header:
        with self.open() as file:
            return npy.read_header(file, self.what)

    def read(self) -> np.ndarray:
        with self.open() as file:
            return self.whole(file, self.what)

    def pieces(self) -> Iterator[np.ndarray]:
        """Yield images in turn, colors first."""
        with self.open() as file:
            header = npy.read_header(file, self.what)
            rows = max(1, _PIECE * header.shape[0] // header.size)
            yield from map(colors_first, npy.pieces_of(file, header, self.what, rows))


def _members(archive: zipfile.ZipFile, path: Path) -> list[_Array | None]:
    """Return training images, test images and the labels of both."""
    members = archive.namelist()

    def find(*names: str) -> _Array | None:
        there = [f"{name}.npy" for name in names if f"{name}.npy" in members]
        return _Array(f"{path}: {there[0].removesuffix('.npy')}", partial(archive.open, there[0])) if there else None

    found = [find(name) for name in _SPLIT]
    if found[0] is None:
        found = [find(*_IMAGES), None, find(*_LABELS), None]
    if found[0] is None:
        names = ", ".join(sorted(members)[:5])
        raise DataError(f"{path} holds {names or 'nothing'}; name its images x, or x_train and x_test.")
    return found


def _from(path: Path, arrays: Sequence[_Array | None], splits: Shares, cache: Cache) -> Collection:
    """Read training images, test images and the labels of both, from the cache where they are certainly images."""
    headers = [each.header() for each in arrays[:2] if each]

    def labels() -> list[np.ndarray | None]:
        return [each and _flat(each.read()) for each in arrays[2:]]

    def decode(folder: Path, file: IO[bytes]) -> Ready:
        claimed = sum(math.prod(header.shape) for header in headers)
        if 2 * claimed > shutil.disk_usage(folder).free:  # which a header may claim that is followed by little
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        train, test = (each and each.pieces() for each in arrays[:2])
        known, test_known = labels()
        return ready_arrays(file, (train, None, test), (known, None, test_known), splits, path.stem)

    if all(map(_are_images, headers)):
        kept = cache.images(path, partial(make_key, path, [path], ["arrays"], splits), decode)
        if kept is not None:
            return kept
    train, test = (each and colors_first(each.read()) for each in arrays[:2])
    assert train is not None
    known, test_known = labels()
    return data_set(train, test, labels=known, test_labels=test_known, splits=splits, name=path.stem)


def _are_images(header: npy.Header) -> bool:
    """Whether an array is one of images, and not perhaps of numbers, and can be read in pieces."""
    pixels = header.dtype == np.uint8 or (header.dtype.kind == "f" and len(header.shape) > 2)
    return pixels and len(header.shape) > 1 and header.size > 0 and not header.fortran


def data_set(train: np.ndarray, test: np.ndarray | None = None, **given: Any) -> Collection:
    """Make images or, of rows (N, columns) that are no levels of gray, a table; arguments of `from_arrays`."""
    if train.ndim == 2 and not all(_are_levels(part) for part in (train, test) if part is not None):
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


def _flat(labels: np.ndarray) -> np.ndarray:
    """Return labels (N, 1), as CIFAR's come, as (N,)."""
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def colors_first(images: np.ndarray) -> np.ndarray:
    """Return images (N, height, width, 1 or 3) with the channels before the height, others as they are."""
    if images.ndim == 4 and images.shape[-1] in (1, 3) and images.shape[1] not in (1, 3):
        return np.ascontiguousarray(np.moveaxis(images, -1, 1))
    return images
