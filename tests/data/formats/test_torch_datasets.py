"""torch datasets: the same data as from arrays; other objects are rejected with one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from helpers.calls import one_line
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from pyro_vae.data import Collection, DataError, from_arrays, from_dataset, from_numbers

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (40, 6, 5), dtype=np.uint8)
COLOR = RNG.integers(0, 256, (40, 3, 6, 5), dtype=np.uint8)
CLASSES = np.arange(40) % 3
ROWS = RNG.normal(size=(40, 4))


class Items(Dataset):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self.items):
            raise RuntimeError("no such item")  # iterating by index would not terminate
        return self.items[index]


class Stream(IterableDataset):
    """An iterable dataset that has a length, as some do, but no indices."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


def identical(a: Collection, b: Collection) -> bool:
    assert (a.labels is None) == (b.labels is None)
    pairs = [(a, b)] if a.labels is None else [(a, b), (a.labels, b.labels)]
    splits = ("train", "valid", "test")
    return all(torch.equal(getattr(x, split), getattr(y, split)) for x, y in pairs for split in splits)


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """Return what torchvision's ToTensor returns for pixels (height, width) or (3, height, width)."""
    return torch.from_numpy(image).reshape(-1, *image.shape[-2:]).float() / 255


def picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image if image.ndim == 2 else np.moveaxis(image, 0, -1))


KINDS: dict[str, Callable[[np.ndarray], Any]] = {
    "bytes": torch.from_numpy,
    "ToTensor": to_tensor,
    "double precision": lambda image: to_tensor(image).double().requires_grad_(),
    "arrays": lambda image: image,
    "a last axis": lambda image: np.moveaxis(image.reshape(-1, 6, 5), 0, -1),
    "pictures": picture,
}


@pytest.mark.parametrize("build", [Items, Stream, list], ids=["items", "stream", "list"])
@pytest.mark.parametrize("images", [GRAY, COLOR], ids=["gray", "color"])
@pytest.mark.parametrize("kind", KINDS)
def test_dataset_of_images_matches_arrays(kind: str, images: np.ndarray, build: Callable[..., Any]) -> None:
    items = [(KINDS[kind](image), int(label)) for image, label in zip(images, CLASSES, strict=True)]
    assert identical(from_dataset(build(items)), from_arrays(images, labels=CLASSES))
    assert identical(from_dataset(build(items), labels=False), from_arrays(images))
    assert identical(from_dataset(build([x for x, _ in items])), from_arrays(images))


def test_separate_test_dataset_is_the_test_split() -> None:
    data = [Items(list(zip(GRAY[part], CLASSES[part], strict=True))) for part in (slice(30), slice(30, 40))]
    expected = from_arrays(GRAY[:30], GRAY[30:], labels=CLASSES[:30], test_labels=CLASSES[30:], splits=(0.5, 0.3, 0.2))
    assert identical(from_dataset(*data, splits=(0.5, 0.3, 0.2)), expected)


@pytest.mark.parametrize("label", [int, np.int64, torch.tensor, lambda y: torch.tensor([y]), lambda y: np.array([y])])
def test_labels_may_be_integers_of_any_type(label: Callable[[int], Any]) -> None:
    items = [(image, label(int(y))) for image, y in zip(GRAY, CLASSES, strict=True)]
    assert identical(from_dataset(Items(items)), from_arrays(GRAY, labels=CLASSES))


def test_vectors_are_numbers_unless_they_are_levels() -> None:
    rows, flat = torch.from_numpy(ROWS), torch.from_numpy(GRAY.reshape(40, 30))
    assert identical(from_dataset(TensorDataset(rows)), from_numbers(ROWS))
    labels = torch.from_numpy(CLASSES)
    assert identical(from_dataset(TensorDataset(rows, labels)), from_numbers(ROWS, labels=CLASSES))
    assert identical(from_dataset(TensorDataset(flat / 255)), from_arrays(flat))


def test_test_vectors_are_not_rounded_to_levels() -> None:
    """Training rows that happen to be levels do not determine the type of the test rows."""
    train, test = GRAY.reshape(40, 30) / 255, RNG.uniform(size=(5, 30))
    found = from_dataset(Items(list(train)), Items(list(test)))
    assert identical(found, from_numbers(train, test))


def with_item(item: Any, index: int = 17) -> Items:
    items: list[Any] = list(zip(GRAY, CLASSES.tolist(), strict=True))
    items[index] = item
    return Items(items)


def all_of(change: Callable[[np.ndarray], Any]) -> Items:
    return Items([change(image) for image in GRAY])


ONE = GRAY[0]
BAD: dict[str, tuple[Any, str]] = {
    "nothing": (Items([]), "mine holds no items"),
    "no dataset": (3, "mine is of type int; give a dataset that has a length or is iterable"),
    "a loader": (DataLoader(Items(list(GRAY))), "mine is a DataLoader, whose items are batches; give its dataset"),
    "a name": ("mnist", "mine: item 0 is of type str; items are x"),
    "a dictionary": (with_item({"image": ONE}), "mine: item 17 is of type dict; items are x"),
    "three": (with_item((ONE, 1, 2)), "mine: item 17 is a tuple of 3; items are x"),
    "another shape": (with_item((ONE[1:], 1)), "mine: item 17 is uint8 (5, 5) and item 0 uint8 (6, 5)"),
    "another type": (with_item((ONE / 255, 1)), "mine: item 17 is float64 (6, 5) and item 0 uint8 (6, 5)"),
    "no label": (with_item(ONE), "mine: item 17 has no label, unlike item 0"),
    "a label unlike the first": (with_item(ONE, 0), "mine: item 1 has a label, unlike item 0"),
    "a real label": (with_item((ONE, 0.5)), "mine: item 17: its label is of type float; give integers"),
    "a real tensor": (with_item((ONE, torch.tensor(2.0))), "mine: item 17: its label is of type float"),
    "several labels": (with_item((ONE, torch.tensor([1, 2]))), "mine: item 17: its label is of type Tensor"),
    "a word": (with_item((ONE, "cat")), "mine: item 17: its label is of type str; give integers, or labels=False"),
    "a label that is not known": (with_item((ONE, -1)), "mine: item 17: its label is -1; count classes from 0"),
    "a transparent picture": (
        with_item((Image.fromarray(np.dstack([GRAY[0]] * 4)), 1)),
        "mine: item 17 has transparent pixels",
    ),
    "half the bits": (all_of(lambda image: to_tensor(image).bfloat16()), "mine: item 0 is a tensor of torch.bfloat16"),
    "a sparse tensor": (
        all_of(lambda image: torch.from_numpy(image).to_sparse()),
        "torch.uint8 torch.sparse",
    ),
    "NaN": (all_of(lambda image: np.where(image > 250, np.nan, 0.5)), "holds nan; floating-point pixels must lie in"),
    "normalized images": (all_of(lambda image: (to_tensor(image) - 0.5) / 0.5), "floating-point pixels must lie in"),
    "integers": (all_of(lambda image: image.astype(np.int64)), "pixels are torch.int64"),
    "NaN in vectors": (Items([*ROWS, ROWS[0] * np.nan]), "row 40 of column 0 is nan"),
    "numbers": (Items([0.5, 0.25]), "mine: item 0 is of type float"),
}


@pytest.mark.parametrize("kind", BAD)
def test_invalid_dataset_is_rejected_with_one_line(kind: str) -> None:
    dataset, says = BAD[kind]
    with pytest.raises(DataError) as caught:
        from_dataset(dataset, name="mine")
    assert says in one_line(caught.value)


def test_bad_test_item_is_named() -> None:
    with pytest.raises(DataError, match=r"^mine, test: item 17 has no label"):
        from_dataset(with_item((GRAY[0], 1)), with_item(GRAY[0]), name="mine")
    with pytest.raises(DataError, match=r"mine: labels are given for only some of the splits"):
        from_dataset(with_item((GRAY[0], 1)), Items(list(GRAY)), name="mine")
