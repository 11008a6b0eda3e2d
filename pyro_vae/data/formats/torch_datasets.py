r"""Any `torch.utils.data.Dataset` as a data set, its items read once."""

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

    Each item is read once, in order, so that of a random transform one draw remains.

    Args:
        train: a dataset with a length and indices, or an iterable one. Its items are x or (x, y): x a tensor, an array
            or a `PIL.Image.Image`, all of one shape and type, and y an integer from 0 on. Images are uint8, or floats
            in [0, 1] as torchvision's ``ToTensor`` gives, (height, width) or (1, height, width), which are gray, or
            (3, height, width) or (height, width, 3). Vectors (columns,) are numbers, unless they are levels of gray as
            of flattened images; see `from_numbers`.
        test: likewise.
        labels: whether y is read.
        name: of the data set.
        splits: as in `from_arrays`.

    Raises:
        DataError: no dataset or an empty one, items of another kind or of different shapes, labels that are no such
            integers or not everywhere; or as `from_arrays` and `from_numbers`.
    """
    values, classes = _read(train, labels, name)
    tested, test_classes = (None, None) if test is None else _read(test, labels, f"{name}, test")
    return data_set(values, tested, labels=classes, test_labels=test_classes, splits=splits, name=name)


def _read(dataset: Any, labels: bool, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the items of a dataset, (N, *shape), and their labels (N,) if there are some."""
    values: list[np.ndarray] = []
    classes: list[int | None] = []
    for index, item in enumerate(_items(dataset, name)):
        what = f"{name}: item {index}"
        x, y = _pair(item, what)
        value, label = _value(x, what), _label(y, what) if labels else None
        if values and (value.shape, value.dtype) != (values[0].shape, values[0].dtype):
            found, first = (f"{each.dtype} {each.shape}" for each in (value, values[0]))
            raise DataError(f"{what} is {found} and item 0 {first}; give all one shape and type.")
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
        except (TypeError, RuntimeError) as error:  # of bfloat16, of sparse tensors
            raise DataError(f"{what} is a tensor of {x.dtype} {x.layout}, of which no array can be made.") from error
    pixels = to_pixels(x, what)
    if pixels is None:
        raise DataError(f"{what} is of type {type(x).__name__}; {_PAIR}, x a tensor, an array or a PIL image.")
    return pixels


def _label(y: Any, what: str) -> int | None:
    """Return a label as an integer from 0 on, or None where there is none."""
    if y is None:
        return None
    scalar = y.item() if isinstance(y, (Tensor, np.ndarray, np.generic)) and math.prod(y.shape) == 1 else y
    if not isinstance(scalar, int):
        raise DataError(f"{what}: its label is of type {type(scalar).__name__}; give integers, or labels=False.")
    if scalar < 0:  # of data whose labels are not known, in torchvision and elsewhere
        raise DataError(f"{what}: its label is {scalar}; count classes from 0, or give labels=False.")
    return int(scalar)
