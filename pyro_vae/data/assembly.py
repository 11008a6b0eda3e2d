r"""Data sets from arrays in memory: splits, if none are given, and labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.arrays import to_uint8
from pyro_vae.data.collection import Collection
from pyro_vae.data.images import Images
from pyro_vae.data.labels import Labels
from pyro_vae.data.splits import BY_CONTENT, GIVEN, HELD_OUT, OWN_SPLITS, Shares, drop_test_share, split_by_content
from pyro_vae.errors import DataError

Array = Tensor | np.ndarray
C = TypeVar("C", bound=Collection)


def from_arrays(
    train: Array,
    test: Array | None = None,
    *,
    labels: Any = None,
    test_labels: Any = None,
    valid: Array | None = None,
    valid_labels: Any = None,
    splits: Shares = OWN_SPLITS,
    name: str = "arrays",
) -> Images:
    """Return a data set of images from arrays.

    Validation and test images that are not given are split off from the training images by their content; see
    `split_by_content`.

    Args:
        train: Training images, uint8 or floating point in [0, 1], shape (N, *pixels).
        test: Test images, with the same dtypes and pixel shape.
        labels: Class of each training image, integers or strings, shape (N,). They are encoded as 0, 1, ... in sorted
            order.
        test_labels: Class of each test image.
        valid: Validation images. They require test images.
        valid_labels: Class of each validation image.
        splits: Fractions of training, validation and test images. If test images are given, the training images are
            split in the proportion of the first two.
        name: Name of the data set.

    Raises:
        DataError: If the pixels are invalid (see `to_uint8`), labels do not match the images or are given only for some
            of the splits, validation images are given without test images, or a split would be empty.

    Example:
        >>> import numpy as np
        >>> pixels = np.random.default_rng(0).integers(0, 256, (100, 8, 8), dtype=np.uint8)
        >>> print(from_arrays(pixels, splits=(0.8, 0.1, 0.1), name="noise"))
        noise: 78 train, 13 valid, 9 test images of 8 x 8 gray pixels, split by their content
    """
    given = ((train, "training"), (valid, "validation"), (test, "test"))
    parts = [None if images is None else to_uint8(images, f"{name}, {split} images") for images, split in given]
    return assemble(Images, name, parts, (labels, valid_labels, test_labels), splits)


def assemble(
    build: Callable[..., C], name: str, parts: Sequence[Tensor | None], labels: Sequence[Any], splits: Shares
) -> C:
    """Split the data, encode the labels, and build the data set.

    Args:
        build: Constructor, called with the name, the training, validation and test data, `Labels` or None, and a
            description of how the data were split.
        name: Name of the data set.
        parts: Training, validation and test data, shape (N, *shape) each. The last two may be None.
        labels: Labels of each part, shape (N,), or None.
        splits: Fractions of the splits, as in `from_arrays`.
    """
    indices, codes, how_split = find_splits(name, parts, labels, splits)
    encoded = None if codes is None else Labels(("class",), *codes)
    return build(name, *(part[chosen] for part, chosen in indices), encoded, how_split)


class SplitIndices(NamedTuple):
    """Positions of the training, validation and test data within the given parts."""

    indices: list[tuple[Tensor, Tensor | slice]]
    """For each split, the part that contains it and the indices of its items in that part."""
    codes: list[Tensor] | None
    """Encoded labels of each split, int64, shape (N, 1)."""
    how_split: str
    """Description of how the data were split; see `Collection`."""


def find_splits(name: str, parts: Sequence[Tensor | None], labels: Sequence[Any], splits: Shares) -> SplitIndices:
    """Split data and encode labels without copying the data. The arguments are those of `assemble`."""
    codes = encode_classes(name, *zip(labels, parts, strict=True))
    given = [part for part in parts if part is not None]
    if parts[2] is None and len(given) > 1:
        raise DataError(f"{name}: validation data are given without test data; give both, or only test data.")
    everything, at, how_split = slice(None), list[tuple[int, Tensor | slice]](), GIVEN
    if len(given) == 3:
        at = [(0, everything), (1, everything), (2, everything)]
    elif len(given) == 2:
        kept, held_out = split_by_content(given[0], drop_test_share(splits), name)
        at, how_split = [(0, kept), (0, held_out), (1, everything)], HELD_OUT
    else:
        at, how_split = [(0, indices) for indices in split_by_content(given[0], splits, name)], BY_CONTENT
    encoded = None if codes is None else codes.split([len(part) for part in given])
    return SplitIndices(
        [(given[part], indices) for part, indices in at],
        None if encoded is None else [encoded[part][indices] for part, indices in at],
        how_split,
    )


def encode_classes(name: str, *given: tuple[Any, Sized | None]) -> Tensor | None:
    """Return the concatenated labels of all parts, encoded as 0, 1, ... in sorted order, or None if there are none.

    Args:
        name: Name of the images in error messages.
        *given: For each part, its labels (N,), integers or strings, or None, and its N images, or None.

    Returns:
        Encoded labels, int64, shape (N, 1), or None.
    """
    labeled = [(np.asarray(labels), images) for labels, images in given if images is not None and labels is not None]
    if not labeled:
        return None
    if len(labeled) < sum(images is not None for _, images in given):
        raise DataError(f"{name}: labels are given for only some of the splits; give them for all, or for none.")
    if len({labels.dtype.kind in "US" for labels, _ in labeled}) > 1:  # concatenation would turn integers into strings
        raise DataError(f"{name}: labels are strings in one split and numbers in another; use one type.")
    for labels, images in labeled:
        if labels.shape != (len(images),):
            raise DataError(f"{name}: labels have shape {labels.shape}, but there are {len(images)} images.")
        if labels.dtype.kind not in "iubUS":
            raise DataError(f"{name}: labels are {labels.dtype}; use integers or strings.")
    _, codes = np.unique(np.concatenate([labels for labels, _ in labeled]), return_inverse=True)
    return torch.as_tensor(codes).long().reshape(-1, 1)
