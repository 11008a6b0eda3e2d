r"""Where images come from: data sets by name, their files checked, their splits stable for ever.

MNIST and its relatives train on the first 55,000 of the 60,000 training images in file order, validate on the last
5,000 and test on the 10,000 test images. Of every seven of the 1,797 digits, in file order, five are for training,
one for validation and one for the test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torchvision
from sklearn.datasets import load_digits
from torch import Tensor

from pyro_vae.data.images import DataError, Images, to_uint8

_NUM_VALID = 5000


def load(name: str, root: Path, train_images: int | None = None, test_images: int | None = None) -> Images:
    """Load a data set by name, downloading it into `root` where it is absent.

    Args:
        name: a key of `DATASETS`.
        root: folder of the downloaded data sets; the embedded digits need none.
        train_images: use only the first so many training images.
        test_images: likewise for the test.

    Raises:
        DataError: unknown name, a file that is absent, damaged or inconsistent, or too few images.
    """
    if name not in DATASETS:
        raise DataError(f"Unknown data set {name!r}; choose one of {', '.join(DATASETS)}.")
    images = DATASETS[name](root)
    return replace(
        images,
        train=_first(images.train, train_images, f"{name}: training"),
        test=_first(images.test, test_images, f"{name}: test"),
    )


def _first(images: Tensor, number: int | None, name: str) -> Tensor:
    if number is None:
        return images
    if not 0 < number <= len(images):
        raise DataError(f"{name}: {number} images asked for, between 1 and {len(images)} are there.")
    return images[:number]


def _digits(root: Path) -> Images:
    pixels = to_uint8(load_digits().images / 16, "digits")
    place = torch.arange(len(pixels)) % 7  # 7 shares no factor with the 10 of the cycling labels
    return Images("digits", pixels[place < 5], pixels[place == 5], pixels[place == 6])


def _idx(kind: type[torchvision.datasets.MNIST]) -> Callable[[Path], Images]:
    def read(root: Path) -> Images:
        train, test = (_read_idx(kind, root, train) for train in (True, False))
        return Images(kind.__name__, train[:-_NUM_VALID], train[-_NUM_VALID:], test)

    return read


def _read_idx(kind: type[torchvision.datasets.MNIST], root: Path, train: bool) -> Tensor:
    where = f"{root / kind.__name__ / 'raw'}: the {'training' if train else 'test'} files of {kind.__name__}"
    remedy = "Delete damaged files to download them again, or name another --data-root."
    try:
        dataset = kind(root, train=train, download=True)  # downloads only what is absent
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")
        raise DataError(f"{where} cannot be read ({reason}). {remedy}") from error
    pixels, labels = dataset.data, dataset.targets
    problem = None
    if pixels.dtype != torch.uint8 or pixels.shape[1:] != (28, 28):
        problem = f"hold images of shape {tuple(pixels.shape[1:])} and type {pixels.dtype}, not (28, 28) uint8"
    elif len(pixels) != len(labels):
        problem = f"hold {len(pixels)} images and {len(labels)} labels"
    elif len(pixels) <= (_NUM_VALID if train else 0):
        problem = f"hold {len(pixels)} images, too few"
    elif not ((labels >= 0) & (labels <= 9)).all():
        problem = f"hold a label {int(labels.max())}, not 0 to 9"
    if problem:
        raise DataError(f"{where} {problem}. {remedy}")
    return pixels


DATASETS: dict[str, Callable[[Path], Images]] = {
    "digits": _digits,
    "mnist": _idx(torchvision.datasets.MNIST),
    "fashion-mnist": _idx(torchvision.datasets.FashionMNIST),
    "kmnist": _idx(torchvision.datasets.KMNIST),
}
# How many training images each has, known before any file is read.
TRAINING_IMAGES = {"digits": 1285, "mnist": 55_000, "fashion-mnist": 55_000, "kmnist": 55_000}
