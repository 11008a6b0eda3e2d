r"""Data of a user's own, from arrays: splits and labels where none are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from typing import Any, TypeVar

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
    train, valid, test = parts
    assert train is not None
    codes = encode_classes(name, *zip(labels, parts, strict=True))
    if test is None:
        if valid is not None:
            raise DataError(f"{name}: validation data are given without test data; give both, or test data alone.")
        first, second, third = split_by_content(train, splits, name)
        known = None if codes is None else Labels(("class",), codes[first], codes[second], codes[third])
        return build(name, train[first], train[second], train[third], known, BY_CONTENT)
    if valid is not None:
        sizes = [len(train), len(valid), len(test)]
        known = None if codes is None else Labels(("class",), *codes.split(sizes))
        return build(name, train, valid, test, known, GIVEN)
    kept, held_out = split_by_content(train, drop_test_share(splits), name)
    known = None if codes is None else Labels(("class",), codes[kept], codes[held_out], codes[len(train) :])
    return build(name, train[kept], train[held_out], test, known, HELD_OUT)


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
