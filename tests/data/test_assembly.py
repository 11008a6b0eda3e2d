"""Arrays of a user: every image occurs once, keeps its label, and stays in its split."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae.data import DataError
from pyro_vae.data.splits import split_by_content


def noise(number: int, *pixels: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (number, *pixels), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def rows(images: torch.Tensor) -> list[bytes]:
    return [image.numpy().tobytes() for image in images]


def test_every_image_is_in_one_split_with_its_label() -> None:
    pixels = noise(500, 4, 3)
    classes = np.array(["cat", "ant", "bee"])[np.arange(500) % 3]
    images = pv.data.from_arrays(pixels, labels=classes)
    splits = {name: rows(getattr(images, name)) for name in ("train", "valid", "test")}
    assert sorted([*splits["train"], *splits["valid"], *splits["test"]]) == sorted(rows(pixels))
    assert images.labels is not None
    known = dict(zip(rows(pixels), classes, strict=True))
    for name, found in splits.items():
        codes = images.labels.get("class", name).tolist()
        assert [known[each] for each in found] == [("ant", "bee", "cat")[code] for code in codes]


def test_split_fractions_are_respected() -> None:
    """Images are assigned independently: binomial counts of 20,000, two comparisons at 4 s.e., 1.3e-4 in all."""
    found = split_by_content(noise(20_000, 2, 2, seed=1), (0.7, 0.2, 0.1), "noise")
    for indices, share in zip(found[1:], (0.2, 0.1), strict=True):
        assert abs(len(indices) - 20_000 * share) < 4 * (20_000 * share * (1 - share)) ** 0.5


def test_split_of_an_image_depends_only_on_its_content() -> None:
    pixels = noise(300, 3, 3)
    first = pv.data.from_arrays(pixels)
    more = pv.data.from_arrays(torch.cat([noise(200, 3, 3, seed=1), pixels.flip(0)]))
    for split in ("train", "valid", "test"):
        assert set(rows(getattr(first, split))) <= set(rows(getattr(more, split)))


def test_equal_images_are_in_the_same_split() -> None:
    pixels = noise(200, 3, 3).repeat(3, 1, 1)
    images = pv.data.from_arrays(pixels)
    splits = [set(rows(getattr(images, name))) for name in ("train", "valid", "test")]
    assert not splits[0] & splits[1]
    assert not splits[0] & splits[2]
    assert not splits[1] & splits[2]


def test_separate_test_images_are_the_test_split() -> None:
    train, test = noise(200, 3, 3), noise(20, 3, 3, seed=1)
    images = pv.data.from_arrays(train, test, labels=np.arange(200) % 5, test_labels=np.arange(20) % 5 + 3)
    assert torch.equal(images.test, test)
    assert sorted(rows(torch.cat([images.train, images.valid]))) == sorted(rows(train))
    assert images.labels is not None
    assert images.labels.test.flatten().tolist() == [3 + each % 5 for each in range(20)]


def test_floats_are_rounded_to_levels_and_split_like_bytes() -> None:
    pixels = noise(100, 3, 3)
    a, b = pv.data.from_arrays(pixels), pv.data.from_arrays((pixels / 255).numpy())
    for split in ("train", "valid", "test"):
        assert torch.equal(getattr(a, split), getattr(b, split))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"labels": np.zeros(99, int)}, r"labels have shape \(99,\), but there are 100 images"),
        ({"labels": np.zeros((100, 1), int)}, r"labels have shape \(100, 1\)"),
        ({"labels": np.zeros(100)}, "labels are float64; use integers or strings"),
        ({"test": noise(9, 3, 3), "labels": np.zeros(100, int)}, "for only some of the splits"),
        ({"valid": noise(9, 3, 3)}, "validation data are given without test data"),
        ({"test": noise(9, 3, 4)}, r"mine: test images are \(3, 4\), training images \(3, 3\)"),
        ({"splits": (0.8, 0.2, 0.2)}, "positive and sum to 1"),
        ({"splits": (1.0, 0.0, 0.0)}, "positive and sum to 1"),
        ({"splits": (1 - 2e-9, 1e-9, 1e-9)}, "of 100 items, none falls into the split of fraction 1e-09"),
    ],
)
def test_invalid_data_set_is_rejected(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        pv.data.from_arrays(noise(100, 3, 3), name="mine", **arguments)


def test_separate_validation_images_are_the_validation_split() -> None:
    train, valid, test = noise(30, 3, 3), noise(10, 3, 3, seed=1), noise(9, 3, 3, seed=2)
    names = np.array(["ant", "bee", "cat"])
    given = {"labels": names[np.arange(30) % 3], "valid_labels": names[np.arange(10) % 2], "test_labels": ["cat"] * 9}
    images = pv.data.from_arrays(train, test, valid=valid, **given)
    assert all(map(torch.equal, (images.train, images.valid, images.test), (train, valid, test)))
    assert images.labels is not None
    found = [images.labels.get("class", split).tolist() for split in ("train", "valid", "test")]
    assert found == [[n % 3 for n in range(30)], [n % 2 for n in range(10)], [2] * 9]


def test_labels_of_words_and_numbers_cannot_be_mixed() -> None:
    with pytest.raises(DataError, match="labels are strings in one split and numbers in another"):
        pv.data.from_arrays(noise(30, 3, 3), noise(9, 3, 3), labels=np.arange(30) % 3, test_labels=["1"] * 9)
