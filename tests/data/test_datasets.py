"""Bundled and named data sets: splits, labels, binarization, dequantization and batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from pyro_vae import data
from pyro_vae.data import BINARIZATIONS, Batches, DataError, Images, Observed

# Four standard errors: a correct program exceeds them with probability 6.3e-5 per comparison, over the choice
# of the seed. The seed is fixed (conftest.py), so that a test that passes once always passes.
NUM_SE = 4


@pytest.fixture
def digits(tmp_path: Path) -> Images:
    return data.load("digits", tmp_path)


# Splits


def test_digits_splits_take_five_one_and_one_of_every_seven(digits: Images) -> None:
    whole, rest = divmod(len(load_digits().images), 7)
    sizes = [5 * whole + min(rest, 5), whole + (rest > 5), whole]
    assert [len(digits.train), len(digits.valid), len(digits.test)] == sizes


def test_digits_splits_are_disjoint_and_cover_the_file(digits: Images) -> None:
    splits = [iter(digits.train)] * 5 + [iter(digits.valid), iter(digits.test)]
    dealt = torch.stack([next(splits[i % 7]) for i in range(len(load_digits().images))])
    assert [list(split) for split in splits] == [[]] * 7  # no image is left over
    sixteenths = np.rint(dealt.numpy() * (16 / 255))  # undo the scaling, which is lossless
    np.testing.assert_array_equal(sixteenths, load_digits().images)


def test_mnist_splits_follow_the_files(mnist_root: Path) -> None:
    def pixels(file: str) -> Tensor:
        path = mnist_root / "MNIST" / "raw" / file
        return torch.from_numpy(np.fromfile(path, np.uint8, offset=16).reshape(-1, 28, 28))

    images = data.load("mnist", mnist_root)
    train = pixels("train-images-idx3-ubyte")
    assert len(train) == 60000
    assert torch.equal(images.train, train[:55000])
    assert torch.equal(images.valid, train[55000:])
    assert torch.equal(images.test, pixels("t10k-images-idx3-ubyte"))
    assert len(images.test) == 10000


def test_labels_follow_their_images(digits: Images, tmp_path: Path) -> None:
    """The class of each image is one that the file gives to an identical image."""
    file = load_digits()
    classes = {tuple(np.rint(image.ravel()).astype(int)): c for image, c in zip(file.images, file.target, strict=True)}
    for split in ("train", "valid", "test"):
        pixels = np.rint(getattr(digits, split).flatten(1).numpy() * (16 / 255)).astype(int)
        assert digits.labels.get("class", split).tolist() == [classes[tuple(row)] for row in pixels]
    few = data.load("digits", tmp_path, train_images=13, test_images=5)
    assert torch.equal(few.labels.get("class", "train"), digits.labels.get("class", "train")[:13])
    assert torch.equal(few.labels.get("class", "test"), digits.labels.get("class", "test")[:5])
    assert few.observed("fixed").pixels.labels is few.labels


def test_labels_of_mnist_match_its_files(mnist_root: Path) -> None:
    raw = mnist_root / "MNIST" / "raw"
    train, test = (np.fromfile(raw / f"{name}-labels-idx1-ubyte", np.uint8, offset=8) for name in ("train", "t10k"))
    labels = data.load("mnist", mnist_root).labels
    assert labels.get("class", "train").tolist() == train[:55_000].tolist()
    assert labels.get("class", "valid").tolist() == train[55_000:].tolist()
    assert labels.get("class", "test").tolist() == test.tolist()


def test_labels_of_the_wrong_length_are_rejected(digits: Images) -> None:
    with pytest.raises(DataError, match=r"labels \(1285, 1\) do not match 5 train images"):
        replace(digits, train=digits.train[:5])


def test_limited_data_set_has_the_first_images(digits: Images, tmp_path: Path) -> None:
    few = data.load("digits", tmp_path, train_images=13, test_images=5)
    assert torch.equal(few.train, digits.train[:13])
    assert torch.equal(few.valid, digits.valid)
    assert torch.equal(few.test, digits.test[:5])


def test_all_images_can_be_requested_by_number(digits: Images, tmp_path: Path) -> None:
    images = data.load("digits", tmp_path, train_images=len(digits.train), test_images=len(digits.test))
    assert torch.equal(images.train, digits.train)
    assert torch.equal(images.test, digits.test)


@pytest.mark.parametrize("number", [0, -1, 1798])
@pytest.mark.parametrize("split", ["train", "test"])
def test_requesting_missing_images_is_rejected(split: str, number: int, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"digits: {number} {split} images requested"):
        data.load("digits", tmp_path, **{f"{split}_images": number})


def test_unknown_data_set_lists_the_choices(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'minst'.*digits, mnist, fashion-mnist, kmnist"):
        data.load("minst", tmp_path)


# Binarization and dequantization


def observe(pixels: Tensor, how: str, dequantize: bool = False) -> Tensor:
    gray = torch.full((1, 1), 128, dtype=torch.uint8)
    return Observed(Images("gray", gray, gray, gray), how, dequantize).observe(pixels)


def test_dynamic_binarization_has_the_mean_of_the_gray_level() -> None:
    levels = torch.tensor([1, 64, 128, 200, 254], dtype=torch.uint8)
    x = observe(levels.expand(100_000, 5), "dynamic")
    assert ((x == 0) | (x == 1)).all()
    p = levels / 255
    # Five means and the product of two pixels, which must be independent: 6 x 6.3e-5 = 4e-4 false alarms.
    assert ((x.mean(0) - p).abs() < NUM_SE * (p * (1 - p) / len(x)).sqrt()).all()
    both = p[2] * p[3]
    assert ((x[:, 2] * x[:, 3]).mean() - both).abs() < NUM_SE * (both * (1 - both) / len(x)).sqrt()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("how", ["dynamic", "fixed", "threshold"])
def test_black_and_white_are_unchanged_by_binarization(how: str, dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    levels = torch.tensor([0, 255], dtype=torch.uint8)
    assert torch.equal(observe(levels.expand(1_000_000, 2), how).mean(0), torch.tensor([0.0, 1.0]))


def test_dynamic_binarization_differs_between_draws() -> None:
    pixels = torch.full((10, 8, 8), 128, dtype=torch.uint8)
    assert not torch.equal(observe(pixels, "dynamic"), observe(pixels, "dynamic"))


def test_pixels_without_binarization_are_gray() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(observe(levels, "none"), torch.tensor([level / 255 for level in range(256)]))


# In single precision, the default of a fit, level + u keeps few bits of u. The largest draws must not be rounded
# up to the next level, as 8 of these 2^20 would be on average.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("level", [0, 1, 127, 128, 255])
def test_dequantized_pixels_are_uniform_within_their_level(level: int, dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    x = observe(torch.full((1 << 20,), level, dtype=torch.uint8), "none", dequantize=True)
    assert level / 256 <= x.min()
    assert x.max() < (level + 1) / 256
    u = 256 * x.double() - level
    # The variance of a sample variance is (E(u - 1/2)^4 - 1/12^2) / n = (1/80 - 1/144) / n. Two comparisons:
    # 1.3e-4 false alarms.
    assert abs(u.mean() - 1 / 2) < NUM_SE * (1 / 12 / len(u)) ** 0.5
    assert abs(u.var() - 1 / 12) < NUM_SE * ((1 / 80 - 1 / 144) / len(u)) ** 0.5


# One-time binarization


def is_binary(pixels: Tensor) -> bool:
    return bool(((pixels == 0) | (pixels == 255)).all())


def test_dynamic_keeps_training_pixels_and_fixes_the_rest(digits: Images) -> None:
    drawn = digits.observed("dynamic").pixels
    assert torch.equal(drawn.train, digits.train)
    assert is_binary(drawn.valid)
    assert is_binary(drawn.test)


def test_fixed_binarizes_every_split(digits: Images) -> None:
    drawn = digits.observed("fixed").pixels
    assert is_binary(drawn.train)
    assert torch.equal(drawn.valid, digits.observed("dynamic").pixels.valid)
    assert torch.equal(drawn.test, digits.observed("dynamic").pixels.test)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_one_time_binarization_has_the_mean_of_the_gray_level(split: str, digits: Images) -> None:
    p = getattr(digits, split) / 255
    number = (getattr(digits.observed("fixed").pixels, split) / 255).sum()
    # A sum of Bernoulli variables of unequal p has variance sum p (1 - p). One comparison: 6.3e-5.
    assert (number - p.sum()).abs() < NUM_SE * (p * (1 - p)).sum().sqrt()


@pytest.mark.parametrize("how", ["dynamic", "fixed"])
def test_one_time_binarization_is_repeatable(how: str, digits: Images) -> None:
    first = digits.observed(how).pixels
    torch.manual_seed(1)
    before = torch.get_rng_state()
    second = digits.observed(how).pixels
    for split in ("train", "valid", "test"):
        assert torch.equal(getattr(first, split), getattr(second, split))
    assert torch.equal(torch.get_rng_state(), before)  # does not use the global generator


def test_splits_are_binarized_independently() -> None:
    grey = torch.full((20, 8, 8), 128, dtype=torch.uint8)
    drawn = Images("grey", grey, grey, grey).observed("fixed").pixels
    assert not torch.equal(drawn.train, drawn.valid)
    assert not torch.equal(drawn.train, drawn.test)
    assert not torch.equal(drawn.valid, drawn.test)


# Otherwise runs on more or fewer training images would be scored on different test images.
@pytest.mark.parametrize("how", ["dynamic", "fixed"])
def test_binarized_test_images_do_not_depend_on_the_numbers_used(how: str, digits: Images, tmp_path: Path) -> None:
    every = digits.observed(how).pixels
    few = data.load("digits", tmp_path, train_images=100, test_images=10).observed(how).pixels
    assert torch.equal(few.test, every.test[:10])
    assert torch.equal(few.valid, every.valid)


def test_threshold_is_128() -> None:
    levels = torch.arange(256, dtype=torch.uint8)[:, None]
    drawn = Images("levels", levels, levels, levels).observed("threshold").pixels
    expected = torch.tensor([0] * 128 + [255] * 128, dtype=torch.uint8)[:, None]
    for split in (drawn.train, drawn.valid, drawn.test):
        assert torch.equal(split, expected)


def test_no_binarization_returns_the_same_images(digits: Images) -> None:
    assert digits.observed("none").pixels is digits


@pytest.mark.parametrize("how", ["fixed", "threshold", "none"])
def test_batches_use_no_generator_without_noise(how: str, digits: Images) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    images = digits.observed(how)
    batches = images.batches(100)
    x = batches.observe(next(batches(0)))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(x, images.split("train")[next(batches(0))])


@pytest.mark.parametrize("how", BINARIZATIONS)
def test_split_is_repeatable_and_leaves_the_generator_unchanged(how: str, digits: Images) -> None:
    first = digits.observed(how)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    for split in ("train", "valid", "test"):
        assert torch.equal(first.split(split), digits.observed(how).split(split))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("how", ["dynamic", "fixed", "threshold"])
def test_density_of_binarized_pixels_is_rejected(how: str, digits: Images) -> None:
    with pytest.raises(DataError, match=f"--binarize {how}.*use --binarize none"):
        digits.observed(how).with_dequantization()


def test_gray_pixels_are_dequantized_only_for_densities(digits: Images) -> None:
    x = digits.observed("none").with_dequantization().split("test")
    assert torch.equal((x * 256).floor(), digits.test.to(x.dtype))
    assert not torch.equal(x, digits.test / 256)
    assert torch.equal(digits.observed("none").split("test"), digits.test / 255)


def test_unknown_binarization_is_rejected(digits: Images) -> None:
    with pytest.raises(DataError, match="'grey'; choose one of dynamic, fixed, threshold, none"):
        digits.observed("grey")


# Batches


def order(seed: int, epoch: int, batch_size: int = 32) -> list[int]:
    batches = Batches(torch.arange(100, dtype=torch.uint8), batch_size, seed, lambda x: x)  # pixel = index
    return torch.cat([batches.observe(batch) for batch in batches(epoch)]).tolist()


@pytest.mark.parametrize("batch_size", [1, 32, 50, 100])
def test_every_image_occurs_once_per_epoch(batch_size: int) -> None:
    assert sorted(order(seed=0, epoch=3, batch_size=batch_size)) == list(range(100))


def test_last_batch_may_be_smaller() -> None:
    batches = Batches(torch.zeros(100, 2, dtype=torch.uint8), 32, 0, lambda x: x)
    assert [len(batch) for batch in batches(0)] == [32, 32, 32, 4]


def test_batch_order_leaves_the_global_generator_unchanged() -> None:
    first = order(seed=5, epoch=2)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert order(seed=5, epoch=2) == first
    assert torch.equal(torch.get_rng_state(), before)


def test_order_of_an_epoch_is_independent_of_earlier_epochs() -> None:
    batches = Batches(torch.arange(100, dtype=torch.uint8), 32, 0, lambda x: x)
    for epoch in (0, 1):
        list(batches(epoch))
    assert torch.cat(list(batches(2))).tolist() == order(seed=0, epoch=2)


@pytest.mark.parametrize("other", [(0, 1), (1, 0), (1, 1), (2**31, 0)])
def test_order_differs_between_epochs_and_seeds(other: tuple[int, int]) -> None:
    assert order(*other) != order(0, 0)


def test_seed_and_epoch_are_not_interchangeable() -> None:
    assert order(seed=2, epoch=3) != order(seed=3, epoch=2)


def test_batches_are_passed_through_observe() -> None:
    pixels = torch.arange(100, dtype=torch.uint8)
    batches = Batches(pixels, 32, 0, lambda x: observe(x, "none"))
    seen = torch.cat([batches.observe(batch) for batch in batches(0)])
    assert torch.equal(seen.sort().values, pixels / 255)


def test_batch_larger_than_the_data_is_rejected() -> None:
    with pytest.raises(DataError, match="batch of 11 is larger than the 10 images: lower --batch-size"):
        Batches(torch.zeros(10, 2, dtype=torch.uint8), 11, 0, lambda x: x)


def test_function_becomes_a_data_set_with_default_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.arange(24 * 4, dtype=torch.uint8).reshape(24, 2, 2)
    monkeypatch.setitem(data.DATASETS, "mine", lambda root, download: Images("mine", *pixels.split(8)))
    assert torch.equal(data.load("mine").test, pixels[16:])
    assert data.defaults("mine").num_samples == data.defaults("mnist").num_samples
