r"""Files of NumPy arrays as data sets, .npy and .npz: numbers alone, since pickled objects would run code.

A .npz holds x or images, with y or labels beside them if there are some; or x_train and x_test, and y_train and y_test.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np

from pyro_vae.data import npy
from pyro_vae.data.images import Images
from pyro_vae.data.own import from_arrays
from pyro_vae.data.splits import Shares
from pyro_vae.errors import DataError

_IMAGES, _LABELS = ("x", "images", "arr_0"), ("y", "labels", "arr_1")
_SPLIT = ("x_train", "x_test", "y_train", "y_test")


def from_file(path: Path | str, *, splits: Shares = (0.8, 0.1, 0.1)) -> Images:
    """Read a .npy or .npz file of images (N, *pixels), uint8 or floats in [0, 1].

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
    try:
        with path.open("rb") as file:
            start = file.read(4)
            file.seek(0)
            if start == b"\x93NUM":
                array = npy.mapped(file, _header(file, str(path)), str(path))
                return from_arrays(_colors_first(array), splits=splits, name=path.stem)
            if start == b"PK\x03\x04":
                with zipfile.ZipFile(file) as archive:
                    return _from_archive({each.filename: each for each in archive.infolist()}, archive, path, splits)
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read ({' '.join(str(error).split())[:120]}); repair or replace it."
        ) from error
    raise DataError(f"{path} is no file of arrays that is known; give a .npy, a .npz, or a folder of images.")


def _from_archive(
    members: Mapping[str, zipfile.ZipInfo], archive: zipfile.ZipFile, path: Path, splits: Shares
) -> Images:
    def read(*names: str) -> np.ndarray | None:
        there = [name for name in names if f"{name}.npy" in members]
        if not there:
            return None
        with archive.open(members[f"{there[0]}.npy"]) as member:
            return _read_member(member, f"{path}: {there[0]}")

    train, test, labels, test_labels = (read(name) for name in _SPLIT)
    if train is None:
        train, labels, test_labels = read(*_IMAGES), read(*_LABELS), None
    if train is None:
        names = ", ".join(sorted(members)[:5])
        raise DataError(f"{path} holds {names or 'nothing'}; name its images x, or x_train and x_test.")
    test = None if test is None else _colors_first(test)
    return from_arrays(
        _colors_first(train), test, labels=_flat(labels), test_labels=_flat(test_labels), splits=splits, name=path.stem
    )


def _flat(labels: np.ndarray | None) -> np.ndarray | None:
    """Return labels (N, 1), as CIFAR's come, as (N,)."""
    return labels[:, 0] if labels is not None and labels.ndim == 2 and labels.shape[1] == 1 else labels


def _colors_first(images: np.ndarray) -> np.ndarray:
    if images.ndim == 4 and images.shape[-1] in (1, 3) and images.shape[1] not in (1, 3):
        return np.ascontiguousarray(np.moveaxis(images, -1, 1))
    return images


def _header(file: IO[bytes], what: str) -> npy.Header:
    """Read the header of an array that the memory has room for."""
    header = npy.read_header(file, what)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if header.size > memory // 2:
        raise DataError(f"{what} takes {header.size / 2**30:.1f} GiB, and the memory is {memory / 2**30:.1f} GiB.")
    return header


def _read_member(file: IO[bytes], what: str) -> np.ndarray:
    """Read one array of an archive: its header first, which says how many bytes are to come."""
    header = _header(file, what)
    content = file.read(header.size)
    # At the end of a member its check sum is compared.
    npy.check_length(header, len(content) + len(file.read(1)), what)
    return header.array(content)
