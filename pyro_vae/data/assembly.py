r"""Data of a user's own, from arrays: splits and labels where none are given."""

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
    """Make a data set of arrays.

    Validation and test images, where none are given, are taken from the training images by `split_by_content`.

    Args:
        train: (N, *pixels), uint8, or floating point in [0, 1].
        test: likewise, of the same pixels.
        labels: (N,), a class of each training image: integers or words, numbered in their order.
        test_labels: likewise of the test images.
        valid: validation images, likewise; only beside test images.
        valid_labels: likewise of the validation images.
        splits: shares of training, validation and test images. With test images of your own, the first two share the
            training images in their proportion.
        name: of the data set.

    Raises:
        DataError: see `to_uint8`; labels of another number than the images, or of some splits alone; validation
            images without test images; or a split that holds no image.
    """
    given = ((train, "training"), (valid, "validation"), (test, "test"))
    parts = [None if images is None else to_uint8(images, f"{name}, {split} images") for images, split in given]
    return assemble(Images, name, parts, (labels, valid_labels, test_labels), splits)


def assemble(
    build: Callable[..., C], name: str, parts: Sequence[Tensor | None], labels: Sequence[Any], splits: Shares
) -> C:
    """Split and label data, and build the data set.

    Args:
        build: called with the name, training, validation and test data, `Labels` or None, and how they are split.
        name: of the data set.
        parts: training, validation and test data (N, *shape); but for the first, None where they are not given.
        labels: of each part, (N,), or None.
        splits: as in `from_arrays`.
    """
    places, codes, how_split = places_of(name, parts, labels, splits)
    known = None if codes is None else Labels(("class",), *codes)
    return build(name, *(part[place] for part, place in places), known, how_split)


class Places(NamedTuple):
    """Where training, validation and test data are in the parts that were given."""

    places: list[tuple[Tensor, Tensor | slice]]
    """Of each split: the part and, in their order, the indices there."""
    codes: list[Tensor] | None
    """Labels of each split, (N, 1)."""
    how_split: str
    """See `Collection`."""


def places_of(name: str, parts: Sequence[Tensor | None], labels: Sequence[Any], splits: Shares) -> Places:
    """Split and label data that stay where they are; arguments of `assemble`."""
    codes = encode_classes(name, *zip(labels, parts, strict=True))
    given = [part for part in parts if part is not None]
    if parts[2] is None and len(given) > 1:
        raise DataError(f"{name}: validation data are given without test data; give both, or test data alone.")
    everything, at, how_split = slice(None), list[tuple[int, Tensor | slice]](), GIVEN
    if len(given) == 3:
        at = [(0, everything), (1, everything), (2, everything)]
    elif len(given) == 2:
        kept, held_out = split_by_content(given[0], drop_test_share(splits), name)
        at, how_split = [(0, kept), (0, held_out), (1, everything)], HELD_OUT
    else:
        at, how_split = [(0, place) for place in split_by_content(given[0], splits, name)], BY_CONTENT
    known = None if codes is None else codes.split([len(part) for part in given])
    return Places(
        [(given[part], place) for part, place in at],
        None if known is None else [known[part][place] for part, place in at],
        how_split,
    )


def encode_classes(name: str, *given: tuple[Any, Sized | None]) -> Tensor | None:
    """Return the labels of all parts, one after the other, as numbers from 0 on, (N, 1); None without any.

    Args:
        name: what an error calls the images.
        *given: labels (N,), integers or words, or None; and the N images of a part, or None.
    """
    labeled = [(np.asarray(labels), images) for labels, images in given if images is not None and labels is not None]
    if not labeled:
        return None
    if len(labeled) < sum(images is not None for _, images in given):
        raise DataError(f"{name}: labels are given for training or test images alone; give both, or none.")
    if len({labels.dtype.kind in "US" for labels, _ in labeled}) > 1:  # joined, the numbers would become words
        raise DataError(f"{name}: labels are words in one split and numbers in another; give either.")
    for labels, images in labeled:
        if labels.shape != (len(images),):
            raise DataError(f"{name}: labels have shape {labels.shape}, and there are {len(images)} images.")
        if labels.dtype.kind not in "iubUS":
            raise DataError(f"{name}: labels are {labels.dtype}; give integers or words.")
    _, codes = np.unique(np.concatenate([labels for labels, _ in labeled]), return_inverse=True)
    return torch.as_tensor(codes).long().reshape(-1, 1)
