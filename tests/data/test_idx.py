"""Files in MNIST's format: read correctly, or rejected with one line that names the file and the rule."""

from __future__ import annotations

import gzip
import logging
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from helpers.calls import one_line

from pyro_vae import data
from pyro_vae.data import DataError

SIZES = {"train": 5001, "t10k": 2}  # the minimum that leaves a training image, and one more
NAMES = [f"{part}-{kind}-ubyte" for part in SIZES for kind in ("images-idx3", "labels-idx1")]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", refuse)


def idx(values: np.ndarray, order: str = ">") -> bytes:
    """Return magic number (2051 for images, 2049 for labels), sizes and values, big-endian."""
    magic = 2048 + values.ndim
    return struct.pack(f"{order}{1 + values.ndim}I", magic, *values.shape) + values.astype(np.uint8).tobytes()


def write_mnist(root: Path) -> Path:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, size in SIZES.items():
        numbers = np.arange(size)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(np.tile(numbers[:, None, None], (28, 28)) % 251))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(numbers % 10))
    return raw


def magic(number: int) -> Callable[[bytes, int], bytes]:
    return lambda good, size: struct.pack(">I", number) + good[4:]


def becomes(content: bytes) -> Callable[[bytes, int], bytes]:
    return lambda good, size: content


IMAGES, LABELS = "images-idx3", "labels-idx1"
# Name: (kind of file, change of its bytes given the number of its images, expected part of the message).
DAMAGE: dict[str, tuple[str, Callable[[bytes, int], bytes], str]] = {
    "empty images": (IMAGES, becomes(b""), "begins with nothing instead of 00000803"),
    "empty labels": (LABELS, becomes(b""), "begins with nothing instead of 00000801"),
    "three bytes": (IMAGES, becomes(b"\0\0\b"), "begins with 000008 instead of"),
    "truncated images": (IMAGES, lambda good, size: good[: len(good) // 2], "{half} bytes instead of {all}"),
    "last byte of images lost": (IMAGES, lambda good, size: good[:-1], "{less} bytes instead of {all}"),
    "last byte of labels lost": (LABELS, lambda good, size: good[:-1], "{less} bytes instead of {all}"),
    "a byte more of images": (IMAGES, lambda good, size: good + b"\n", "{more} bytes instead of {all}"),
    "a byte more of labels": (LABELS, lambda good, size: good + b"\n", "{more} bytes instead of {all}"),
    "truncated header": (IMAGES, lambda good, size: good[:10], "is truncated in its header"),
    "truncated header of labels": (LABELS, lambda good, size: good[:4], "is truncated in its header"),
    "header alone": (IMAGES, lambda good, size: good[:16], "16 bytes instead of {all}"),
    "content alone": (IMAGES, lambda good, size: good[16:], "begins with 00000000 instead"),
    "images with the magic number of labels": (IMAGES, magic(2049), "begins with 00000801 instead"),
    "labels with the magic number of images": (LABELS, magic(2051), "begins with 00000803 instead"),
    "magic number of another type": (IMAGES, magic(0x0D03), "begins with 00000d03 instead"),
    "magic number of no type": (IMAGES, magic(0x0A03), "begins with 00000a03 instead"),
    "magic number zero": (IMAGES, magic(0), "begins with 00000000 instead"),
    "a little-endian header": (IMAGES, lambda good, size: idx(np.zeros((size, 28, 28)), "<"), "begins with 03080000"),
    "labels in the place of images": (IMAGES, lambda good, size: idx(np.zeros(size)), "begins with 00000801 instead"),
    "images in the place of labels": (
        LABELS,
        lambda good, size: idx(np.zeros((size, 28, 28))),
        "with 00000803 instead",
    ),
    "flat images": (IMAGES, lambda good, size: idx(np.zeros((size, 784))), "begins with 00000802 instead"),
    "one image without a number": (IMAGES, lambda good, size: idx(np.zeros((28, 28))), "begins with 00000802"),
    "one-hot labels": (LABELS, lambda good, size: idx(np.zeros((size, 10))), "begins with 00000802 instead"),
    "as many images as a header can say": (
        IMAGES,
        lambda good, size: good[:4] + b"\xff" * 4 + good[8:],
        f"bytes instead of {16 + (2**32 - 1) * 784}",
    ),
    "a shape beyond 64 bits": (IMAGES, lambda good, size: good[:4] + b"\xff" * 12, f"of {16 + (2**32 - 1) ** 3}"),
    "no images": (IMAGES, lambda good, size: idx(np.zeros((0, 28, 28))), "holds 0 images, but at least"),
    "no labels": (LABELS, lambda good, size: idx(np.zeros(0)), "holds 0 labels for {size} images"),
    "no pixels": (IMAGES, lambda good, size: idx(np.zeros((size, 0, 0))), "of shape (0, 0), not (28, 28)"),
    "32 x 32 images": (IMAGES, lambda good, size: idx(np.zeros((size, 32, 32))), "shape (32, 32), not (28, 28)"),
    "the number of images last": (
        IMAGES,
        lambda good, size: idx(np.zeros((28, 28, size))),
        "of shape (28, {size})",
    ),
    "fewer labels than images": (LABELS, lambda good, size: idx(np.zeros(size - 1)), "holds {fewer} labels for {size}"),
    "more labels than images": (LABELS, lambda good, size: idx(np.zeros(size + 1)), "labels for {size} images"),
    "label 77": (LABELS, lambda good, size: idx(np.full(size, 77)), "a label 77, not 0 to 9"),
    "labels from 9 to 18": (LABELS, lambda good, size: idx(np.arange(size) % 10 + 9), "a label 1"),
    "an HTML page": (IMAGES, becomes(b"<!DOCTYPE html>\n<html>\n404\n</html>\n"), "begins with 3c21444f instead"),
    "a table of numbers": (IMAGES, becomes(b"label,1x1,1x2\n7,0,0\n"), "begins with 6c616265 instead"),
    "a NumPy file": (IMAGES, becomes(b"\x93NUMPY\x01\x00" + b" " * 120), "begins with 934e554d instead"),
    "a pointer to a large file": (
        IMAGES,
        becomes(b"version https://git-lfs.github.com/spec/v1\n"),
        "begins with 76657273",
    ),
    "compressed": (IMAGES, lambda good, size: gzip.compress(good), "it is compressed, gunzip it"),
    "compressed and cut short": (LABELS, lambda good, size: gzip.compress(good)[:20], "it is compressed, gunzip it"),
    "a disk that gave nothing but zeros": (IMAGES, lambda good, size: bytes(len(good)), "begins with 00000000 instead"),
}


def test_valid_files_are_read(tmp_path: Path) -> None:
    # Shows that each rejection below is due to the damage, and that existing files are not downloaded.
    write_mnist(tmp_path)
    images = data.load("mnist", tmp_path)
    assert images.train[:, 0, 0].tolist() == [0]
    assert images.valid[:, 27, 27].tolist() == [number % 251 for number in range(1, 5001)]
    assert images.test[:, 0, 27].tolist() == [0, 1]


def test_damaged_files_are_rejected_with_one_line(tmp_path: Path, promised: Callable[[str], None]) -> None:
    raw = write_mnist(tmp_path)
    for damage, (kind, change, says) in DAMAGE.items():
        for part, size in SIZES.items():
            file = raw / f"{part}-{kind}-ubyte"
            good = file.read_bytes()
            file.write_bytes(change(good, size))
            with pytest.raises(DataError) as caught:
                data.load("mnist", tmp_path)
            file.write_bytes(good)
            message = one_line(caught.value)
            sizes = {"all": len(good), "half": len(good) // 2, "less": len(good) - 1, "more": len(good) + 1}
            assert says.format(size=size, fewer=size - 1, **sizes) in message, (damage, message)
            assert message.startswith(str(raw / part)), (damage, message)  # either file, if they disagree
            assert "--data-root" in message, (damage, message)
    assert len(data.load("mnist", tmp_path).test) == SIZES["t10k"]
    promised(f"{len(DAMAGE)} kinds of bad file are rejected with one line, in each of {len(SIZES)} splits")


def test_too_few_training_images_are_rejected(tmp_path: Path) -> None:
    raw = write_mnist(tmp_path)
    (raw / "train-images-idx3-ubyte").write_bytes(idx(np.zeros((5000, 28, 28))))  # all used for validation
    (raw / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(5000)))
    with pytest.raises(DataError) as caught:
        data.load("mnist", tmp_path)
    expected = f"{raw / 'train-images-idx3-ubyte'} holds 5000 images, but at least 5001 are required"
    assert expected in one_line(caught.value)


# Missing files


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("instead", ["nothing", "truncated gz", "folder", "dangling link", "other name"])
def test_missing_file_is_reported_without_a_network(name: str, instead: str, tmp_path: Path) -> None:
    raw = write_mnist(tmp_path)
    content = (raw / name).read_bytes()
    (raw / name).unlink()
    if instead == "truncated gz":
        (raw / f"{name}.gz").write_bytes(gzip.compress(content)[:-50])
    elif instead == "folder":
        (raw / name).mkdir()
    elif instead == "dangling link":
        (raw / name).symlink_to("nowhere")
    elif instead == "other name":
        (raw / name.replace("-idx", ".idx")).write_bytes(content)  # as named in some archives
    for download, says in ((True, "downloading failed"), (False, "to the folder of your data sets")):
        with pytest.raises(DataError) as caught:
            data.load("mnist", tmp_path, download=download)
        message = one_line(caught.value)
        assert f"{raw} has no {name}" in message
        assert says in message
        assert "--data-root" in message


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST"), ("kmnist", "KMNIST")]
)
def test_missing_data_set_is_reported_without_a_network(name: str, folder: str, tmp_path: Path) -> None:
    for download in (False, True):
        with pytest.raises(DataError) as caught:
            data.load(name, tmp_path, download=download)
        message = one_line(caught.value)
        assert str(tmp_path / folder / "raw") in message
        assert "--data-root" in message
        assert not any(tmp_path.iterdir())  # nor does a failed download leave a folder


@pytest.mark.parametrize("download", [True, False])
@pytest.mark.parametrize("below", ["", "x" * 300, "\0", "\ud800"])
def test_root_that_cannot_be_a_folder_is_rejected(below: str, download: bool, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError) as caught:
        data.load("mnist", tmp_path / "file" / below, download=download)
    assert str(tmp_path / "file" / below / "MNIST" / "raw") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine"


def test_unreadable_files_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = write_mnist(tmp_path)

    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("numpy.fromfile", refuse)
    with pytest.raises(DataError) as caught:
        data.load("mnist", tmp_path)
    assert f"{raw / NAMES[0]} cannot be read (Permission denied)" in one_line(caught.value)


# Whether files are those of MNIST


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("kmnist", "KMNIST")])
def test_other_numbers_of_images_are_used_with_one_warning(
    name: str, folder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw = write_mnist(tmp_path)
    raw.parent.rename(tmp_path / folder)
    assert len(data.load(name, tmp_path).test) == 2
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("pyro_vae", logging.WARNING)
    where = tmp_path / folder / "raw"
    assert record.getMessage() == f"{where} is not {folder}: it holds 5001 training and 2 test images."


def test_another_data_set_of_the_same_size_is_not_mnist(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, size in (("train", 60_000), ("t10k", 10_000)):
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(size) % 10))
        with (raw / f"{part}-images-idx3-ubyte").open("wb") as file:  # black images, a sparse file
            file.write(struct.pack(">4I", 2051, size, 28, 28))
            file.truncate(16 + size * 784)
    with pytest.raises(DataError) as caught:
        data.load("mnist", tmp_path)
    message = one_line(caught.value)
    assert message.startswith(f"{raw / 'train-images-idx3-ubyte'} is not the original MNIST file: its SHA-256 is ")
    assert "--data-root" in message
    raw.parent.rename(tmp_path / "FashionMNIST")
    assert len(data.load("fashion-mnist", tmp_path).train) == 55_000  # its digests are not stored


def test_mnist_is_recognized(mnist_root: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = data.load("mnist", mnist_root, download=False)
    assert [len(images.train), len(images.valid), len(images.test)] == [55_000, 5_000, 10_000]
    assert not caplog.records
    labels = np.fromfile(mnist_root / "MNIST" / "raw" / "train-labels-idx1-ubyte", np.uint8, offset=8)
    assert np.bincount(labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


FLIPS = 25  # per file


def test_flipped_bit_in_mnist_is_detected(mnist_root: Path, tmp_path: Path, promised: Callable[[str], None]) -> None:
    """Bits at random positions of each file, the first one in its header."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    refused = 0
    for damaged in NAMES:
        for name in NAMES:
            (raw / name).unlink(missing_ok=True)
            (raw / name).symlink_to(mnist_root / "MNIST" / "raw" / name)
        (raw / damaged).unlink()
        shutil.copyfile(mnist_root / "MNIST" / "raw" / damaged, raw / damaged)
        header = 16 if "images" in damaged else 8
        size = (raw / damaged).stat().st_size
        for place in (rng.integers(header), *rng.integers(header, size, FLIPS - 1)):
            content: Any = np.memmap(raw / damaged, np.uint8, "r+")
            content[place] ^= 1 << rng.integers(8)
            with pytest.raises(DataError) as caught:
                data.load("mnist", tmp_path)
            # A wrong size in a header may be reported for the images or for the labels.
            assert str(raw / damaged.split("-")[0]) in one_line(caught.value)
            refused += 1
            content[place] = np.fromfile(mnist_root / "MNIST" / "raw" / damaged, np.uint8, 1, offset=int(place))[0]
            del content
        data.load("mnist", tmp_path)
    promised(f"{refused} of {FLIPS * len(NAMES)} flipped bits in MNIST's files are detected")
    assert refused == FLIPS * len(NAMES)


def test_only_verified_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision would prefer tensors in a sibling folder, whose digests are unknown."""
    write_mnist(tmp_path)
    processed = tmp_path / "MNIST" / "processed"
    processed.mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save((torch.full((6000, 28, 28), 7, dtype=torch.uint8), torch.zeros(6000)), processed / name)
    assert data.load("mnist", tmp_path).test[:, 0, 27].tolist() == [0, 1]
