"""Data sets by name: values that the published files never contain are rejected with one line naming the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.calls import one_line
from helpers.named_files import (
    BITS,
    GRAY,
    SILHOUETTES,
    TEST,
    TRAIN,
    check,
    columns,
    few_validation_images,
    write_cifar10,
    write_emnist,
    write_omniglot,
    write_silhouettes,
    write_static_mnist,
    write_svhn,
)
from scipy.io import savemat

from pyro_vae import data
from pyro_vae.data import DataError


@pytest.fixture(autouse=True)
def _few_validation_images(monkeypatch: pytest.MonkeyPatch) -> None:
    few_validation_images(monkeypatch)


def replaced(path: Path, place: int, value: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] = value
    path.write_bytes(content)


def test_labels_beyond_the_classes_are_rejected(tmp_path: Path) -> None:
    replaced(write_cifar10(tmp_path) / "data_batch_2.bin", 3073, 10)
    with pytest.raises(DataError, match=r"data_batch_2.bin holds a label 10, not 0 to 9"):
        data.load("cifar10", tmp_path)
    replaced(write_emnist(tmp_path) / "emnist-balanced-test-labels-idx1-ubyte", 8, 47)
    with pytest.raises(DataError, match=r"labels-idx1-ubyte holds a label 47, not 0 to 46"):
        data.load("emnist", tmp_path)


PIXELS = np.zeros((32, 32, 3, TRAIN), np.uint8)
LABELS = np.ones((TRAIN, 1))
BAD_SVHN = {
    "no pixels": ({"y": LABELS}, "holds no X"),
    "gray images": ({"X": PIXELS[:, :, :1], "y": LABELS}, "X is 32 x 32 x 1 x 20, not 32 x 32 x 3 x N"),
    "one image without a number": ({"X": PIXELS[..., 0], "y": LABELS}, "X is 32 x 32 x 3, not 32 x 32 x 3 x N"),
    "floats": ({"X": PIXELS / 255, "y": LABELS}, "X is float64, not uint8"),
    "label 0": ({"X": PIXELS, "y": np.arange(TRAIN)[:, None] % 10}, "y holds a label 0, not 1 to 10"),
    "label 1.5": ({"X": PIXELS, "y": LABELS * 1.5}, "y holds a label 1.5, not 1 to 10"),
    "no number": ({"X": PIXELS, "y": LABELS * np.nan}, "y holds a label nan"),
    "fewer labels": ({"X": PIXELS, "y": LABELS[1:]}, "y has 19 labels for 20 images"),
    "words": ({"X": PIXELS, "y": np.array([["one"]])}, "y is not an array of numbers"),
    "cells": ({"X": PIXELS, "y": np.array([[1.0], [2.0]], object)}, "y is not an array of numbers"),
}


@pytest.mark.parametrize("case", BAD_SVHN)
def test_bad_variables_of_svhn_are_rejected(case: str, tmp_path: Path) -> None:
    held, says = BAD_SVHN[case]
    path = write_svhn(tmp_path) / "train_32x32.mat"
    savemat(path, held)
    with pytest.raises(DataError) as caught:
        data.load("svhn", tmp_path)
    assert one_line(caught.value).startswith(str(path))
    assert says in one_line(caught.value)


def test_pixels_of_omniglot_outside_0_and_1_are_rejected(tmp_path: Path) -> None:
    for value in (1.5, -0.1, np.nan):
        pixels = np.full((784, TEST), 0.5)
        pixels[3, 1] = value
        write_omniglot(tmp_path, testdata=pixels)
        with pytest.raises(DataError, match=rf"testdata: image 1 holds {value:g}; .* must lie in \[0, 1\]") as caught:
            data.load("omniglot", tmp_path)
        one_line(caught.value)


def test_labels_of_omniglot_are_read_if_every_image_has_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_omniglot(tmp_path, target=None)
    check(data.load("omniglot", tmp_path), GRAY, None)
    caplog.clear()
    for bad in (np.zeros((50, TRAIN)), np.ones((50, TRAIN)), np.eye(50), np.eye(50)[:, :TRAIN] / 2):
        write_omniglot(tmp_path, target=bad)
        check(data.load("omniglot", tmp_path), GRAY, None)
        assert "no labels are read" in caplog.records[-1].getMessage()


def test_pixels_and_labels_of_silhouettes_are_validated(tmp_path: Path) -> None:
    bad: list[tuple[dict[str, object], str]] = [
        ({"val_data": 2 * columns(BITS[:5])}, "val_data holds 2, not 0 or 1"),
        ({"val_data": columns(GRAY[:5] / 255)}, "val_data holds 0."),
        ({"test_labels": np.full((TEST, 1), 102)}, "test_labels holds a label 102, not 1 to 101"),
        ({"test_labels": np.ones((TEST + 1, 1))}, "test_labels has 5 labels for 4 images"),
        ({"train_data": np.zeros((784, 15))}, "train_data is 784 x 15, not N x 784"),
        ({"train_data": None}, "holds no train_data"),
    ]
    for changes, says in bad:
        path = write_silhouettes(tmp_path, **changes) / SILHOUETTES
        with pytest.raises(DataError) as caught:
            data.load("caltech-silhouettes", tmp_path)
        assert one_line(caught.value).startswith(str(path))
        assert says in one_line(caught.value)


@pytest.mark.parametrize("layout", [{"end": " \n", "last": " \n"}, {"end": "\r\n", "last": "\r\n"}, {"last": ""}])
def test_other_line_endings_are_read(layout: dict[str, str], tmp_path: Path) -> None:
    write_static_mnist(tmp_path, **layout)
    check(data.load("static-mnist", tmp_path), 255 * BITS, None)


def test_row_that_is_not_a_binary_image_is_named(tmp_path: Path) -> None:
    path = write_static_mnist(tmp_path) / "binarized_mnist_train.amat"
    rows = path.read_text().splitlines()
    for bad in (
        rows[2].replace("1", "2", 1),
        rows[2].replace("0", "/", 1),
        rows[2][2:],
        rows[2] + " 0",
        rows[2].replace(" ", "0", 1),  # 10 or 00
        rows[2].replace("0 ", "0\n", 1),
        rows[2].replace("0 ", "0,", 1),
        "",
    ):
        path.write_text("\n".join([*rows[:2], bad, *rows[3:]]) + "\n")
        with pytest.raises(DataError, match="row 3 is not 784 times 0 or 1 with one space between them") as caught:
            data.load("static-mnist", tmp_path)
        assert one_line(caught.value).startswith(str(path))
