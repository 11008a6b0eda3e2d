r"""Conversion of any `torch.utils.data.Dataset` to a data set in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from pyro_vae.data.collection import Collection
from pyro_vae.data.formats.array_files import colors_first, data_set
from pyro_vae.data.formats.image_files import to_pixels
from pyro_vae.data.splits import OWN_SPLITS, Shares
from pyro_vae.errors import DataError

_PAIR = "items are x, or a tuple of x and its label"


def from_dataset(
    train: Any, test: Any = None, *, labels: bool = True, name: str = "dataset", splits: Shares = OWN_SPLITS
) -> Collection:
    """Read a `torch.utils.data.Dataset` into memory.

    Each item is read once, in order, so that random transforms are applied only once.

    Args:
        train: Dataset of training items, with a length and indices, or iterable. Its items are x or (x, y). x is a
            tensor, an array or a `PIL.Image.Image`, and all have the same shape and type; y is an integer label, 0 or
            larger. Images are uint8, or floats in [0, 1] as from torchvision's ``ToTensor``. Their shape is (height,
            width) or (1, height, width) if they are gray, and (3, height, width) or (height, width, 3) if they are in
            color. Vectors (columns,) are numbers (see `from_numbers`), unless all values are gray levels, as those of
            flattened images.
        test: Dataset of test items.
        labels: Read the labels y.
        name: Name of the data set.
        splits: Fractions of training, validation and test data; see `from_arrays`.

    Raises:
        DataError: If an argument is not a dataset or is empty, items are unsupported or differ in shape, or labels are
            negative, not integers, or missing for some items; or see `from_arrays` and `from_numbers`.
    """
    values, classes = _read(train, labels, name)
    tested, test_classes = (None, None) if test is None else _read(test, labels, f"{name}, test")
    return data_set(values, tested, labels=classes, test_labels=test_classes, splits=splits, name=name)


def _read(dataset: Any, labels: bool, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the items of a dataset, shape (N, *shape), and their labels (N,) or None."""
    values: list[np.ndarray] = []
    classes: list[int | None] = []
    for index, item in enumerate(_items(dataset, name)):
        what = f"{name}: item {index}"
        x, y = _pair(item, what)
        value, label = _value(x, what), _label(y, what) if labels else None
        if values and (value.shape, value.dtype) != (values[0].shape, values[0].dtype):
            this, first = (f"{array.dtype} {array.shape}" for array in (value, values[0]))
            raise DataError(f"{what} is {this} and item 0 {first}; give all one shape and type.")
        if classes and (label is None) != (classes[0] is None):
            raise DataError(f"{what} has {'no' if label is None else 'a'} label, unlike item 0; label all, or none.")
        values.append(value)
        classes.append(label)
    if not values:
        raise DataError(f"{name} holds no items.")
    images = colors_first(np.stack(values))
    images = images[:, 0] if images.ndim == 4 and images.shape[1] == 1 else images
    return images, None if classes[0] is None else np.asarray(classes)


def _items(dataset: Any, name: str) -> Iterator[Any]:
    if isinstance(dataset, DataLoader):
        raise DataError(f"{name} is a DataLoader, whose items are batches; give its dataset.")
    if isinstance(dataset, IterableDataset):
        return iter(dataset)
    if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"):
        return (dataset[index] for index in range(len(dataset)))
    if hasattr(dataset, "__iter__"):
        return iter(dataset)
    raise DataError(f"{name} is of type {type(dataset).__name__}; give a dataset that has a length or is iterable.")


def _pair(item: Any, what: str) -> tuple[Any, Any]:
    if not isinstance(item, (tuple, list)):
        return item, None
    if len(item) not in (1, 2):
        raise DataError(f"{what} is a {type(item).__name__} of {len(item)}; {_PAIR}.")
    return item[0], item[1] if len(item) == 2 else None


def _value(x: Any, what: str) -> np.ndarray:
    if isinstance(x, np.ndarray):
        return x
    if isinstance(x, Tensor):
        try:
            return x.detach().cpu().numpy()
        except (TypeError, RuntimeError) as error:  # e.g. bfloat16 or sparse tensors
            raise DataError(f"{what} is a tensor of {x.dtype} {x.layout}, which NumPy does not support.") from error
    pixels = to_pixels(x, what)
    if pixels is None:
        raise DataError(f"{what} is of type {type(x).__name__}; {_PAIR}, x a tensor, an array or a PIL image.")
    return pixels


def _label(y: Any, what: str) -> int | None:
    """Return a label as a nonnegative integer, or None if there is none."""
    if y is None:
        return None
    scalar = y.item() if isinstance(y, (Tensor, np.ndarray, np.generic)) and math.prod(y.shape) == 1 else y
    if not isinstance(scalar, int):
        raise DataError(f"{what}: its label is of type {type(scalar).__name__}; give integers, or labels=False.")
    if scalar < 0:  # unknown labels, e.g. in torchvision
        raise DataError(f"{what}: its label is {scalar}; count classes from 0, or give labels=False.")
    return int(scalar)
