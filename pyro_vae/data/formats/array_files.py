r"""Files of NumPy arrays as data sets, .npy and .npz: numbers alone, since pickled objects would run code.

A .npz holds x or images, with y or labels beside them if there are some; or x_train and x_test, and y_train and y_test.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from pyro_vae.data import npy
from pyro_vae.data.assembly import from_arrays
from pyro_vae.data.collection import Collection
from pyro_vae.data.numbers import from_numbers
from pyro_vae.data.splits import OWN_SPLITS, Shares
from pyro_vae.errors import DataError

_LEVEL_ERROR = 0.07  # of a level k / 255 in half precision
_IMAGES, _LABELS = ("x", "images", "arr_0"), ("y", "labels", "arr_1")
_SPLIT = ("x_train", "x_test", "y_train", "y_test")


def from_array_file(path: Path | str, *, splits: Shares = OWN_SPLITS) -> Collection:
    """Read a .npy or .npz file of images (N, *pixels), uint8 or floats in [0, 1], or of numbers (N, columns).

    Colors may stand last, (N, height, width, 3), as is usual for arrays; they are moved before the height. A .npy is
    mapped while it is split, so that its images are in memory once; the arrays of a .npz are read first.

    Args:
        path: of the file, which is known by what it holds, whatever its name.
        splits: shares of training, validation and test images; see `from_arrays`.

    Raises:
        DataError: the file cannot be read, is damaged, holds pickled objects, more than half the memory or nothing of a
            known name; or as `from_arrays`.
    """
    path = Path(path)
    with npy.one_line(path), path.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        if start == b"\x93NUM":
            array = npy.map_array(file, str(path))
            return data_set(colors_first(array), splits=splits, name=path.stem)
        if start == b"PK\x03\x04":
            with zipfile.ZipFile(file) as archive:
                return _from_archive(archive, path, splits)
    raise DataError(f"{path} is no file of arrays that is known; give a .npy, a .npz, or a folder of images.")


def _from_archive(archive: zipfile.ZipFile, path: Path, splits: Shares) -> Collection:
    members = archive.namelist()

    def read(*names: str) -> np.ndarray | None:
        there = [name for name in names if f"{name}.npy" in members]
        return npy.read_member(archive, path, there[0]) if there else None

    train, test, labels, test_labels = (read(name) for name in _SPLIT)
    if train is None:
        train, labels, test_labels = read(*_IMAGES), read(*_LABELS), None
    if train is None:
        names = ", ".join(sorted(members)[:5])
        raise DataError(f"{path} holds {names or 'nothing'}; name its images x, or x_train and x_test.")
    test = None if test is None else colors_first(test)
    return data_set(
        colors_first(train), test, labels=_flat(labels), test_labels=_flat(test_labels), splits=splits, name=path.stem
    )


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


def _flat(labels: np.ndarray | None) -> np.ndarray | None:
    """Return labels (N, 1), as CIFAR's come, as (N,)."""
    return labels[:, 0] if labels is not None and labels.ndim == 2 and labels.shape[1] == 1 else labels


def colors_first(images: np.ndarray) -> np.ndarray:
    """Return images (N, height, width, 1 or 3) with the channels before the height, others as they are."""
    if images.ndim == 4 and images.shape[-1] in (1, 3) and images.shape[1] not in (1, 3):
        return np.ascontiguousarray(np.moveaxis(images, -1, 1))
    return images
