r"""A folder of image files as a data set: recognized by what the files hold, decoded in parallel, checked one by one.

Sub-folders are classes: FOLDER/cat/1.png. Folders train, test and, if there is one, valid above these are splits;
without them images are split by their content. Within a split they stand in an order that their content decides.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.image_files import read_all, square
from pyro_vae.data.images import Images
from pyro_vae.data.own import from_arrays, from_splits
from pyro_vae.data.splits import OWN_SPLITS, Shares, content_hashes
from pyro_vae.errors import DataError

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".tif", ".tiff", ".bmp")
_SPLITS = ("train", "valid", "test")


def from_folder(
    path: Path | str,
    *,
    size: int | None = None,
    channels: int | None = None,
    skip_bad: bool = False,
    splits: Shares = OWN_SPLITS,
) -> Images:
    """Read a folder of image files, and all folders in it.

    Args:
        path: the folder. PNG, JPEG, WebP, GIF, TIFF and BMP are read; other files are left out.
        size: height and width; images are cropped to the square in their center and resized, antialiased. None: all
            images have one size.
        channels: 1 for gray images (N, height, width), 3 for colors (N, 3, height, width). None: 1 if all files are
            gray, otherwise 3.
        skip_bad: whether files that cannot be used are left out, with a warning for each.
        splits: shares of training, validation and test images, where no folders say so; see `from_arrays`.

    Raises:
        DataError: no folder, no images, or a file that is damaged, animated, transparent, of another size than the
            first or of a type that is no image of 8 or 16 bits; names the file.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder of images.")
    files = sorted(_files(folder))
    if not files:
        raise DataError(f"{folder} holds no images ({', '.join(_SUFFIXES)}).")
    read = list(read_all(files, lambda image, path: image if size is None else square(image, size), skip_bad))
    if not read:
        raise DataError(f"None of the {len(files)} image files can be used; the first: {files[0]}.")
    good, arrays = [path for path, _ in read], [array for _, array in read]
    pixels = _stack(arrays, channels, good)
    # Files come class by class. In the order of a hash the first images of a split are a sample of all, and the same
    # ones when files are added.
    order = content_hashes(pixels).argsort(stable=True)
    pixels = pixels[order]
    parts = [good[index].relative_to(folder).parts[:-1] for index in order.tolist()]
    by_split = all(part and part[0] in _SPLITS for part in parts) and {"train", "test"} <= {part[0] for part in parts}
    classes = [part[by_split:] for part in parts]
    labels = ["/".join(each) for each in classes] if all(classes) else None
    if not by_split:
        return from_arrays(pixels, labels=labels, splits=splits, name=folder.name)
    places = {name: torch.tensor([i for i, part in enumerate(parts) if part[0] == name]) for name in _SPLITS}
    return from_splits(pixels, places, labels, splits, folder.name)


def _files(folder: Path) -> Iterator[Path]:
    """Yield the image files of a folder, of each directory once: a link may lead back to one above it."""
    seen: set[tuple[int, int]] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        for name in names:
            if name.lower().endswith(_SUFFIXES) and not name.startswith("."):
                yield Path(root) / name


def _stack(arrays: Sequence[np.ndarray], channels: int | None, files: Sequence[Path]) -> Tensor:
    """Return (N, height, width) or (N, 3, height, width), uint8."""
    if channels not in (None, 1, 3):
        raise DataError(f"channels is {channels}; choose 1 or 3.")
    shape = arrays[0].shape[:2]
    for array, path in zip(arrays, files, strict=True):
        if array.shape[:2] != shape:
            sizes = [" x ".join(map(str, each)) for each in (array.shape[:2], shape)]
            raise DataError(f"{path} is {sizes[0]} pixels and {files[0].name} {sizes[1]}; give a size for all.")
    if channels is None:
        channels = 3 if any(array.ndim == 3 for array in arrays) else 1
    pixels = np.empty((len(arrays), *([3] if channels == 3 else []), *shape), np.uint8)
    for target, array in zip(pixels, arrays, strict=True):
        if channels == 3:
            target[:] = array if array.ndim == 2 else np.moveaxis(array, -1, 0)
        else:
            target[:] = array if array.ndim == 2 else _luma(array)
    return torch.from_numpy(pixels)


def _luma(colors: np.ndarray) -> np.ndarray:
    """Return the brightness of colors (height, width, 3), by ITU-R BT.601."""
    return (colors @ np.array([0.299, 0.587, 0.114])).round().astype(np.uint8)
