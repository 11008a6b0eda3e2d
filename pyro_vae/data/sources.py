r"""Where images come from: data sets by name, their files checked, their splits stable for ever.

MNIST and its relatives train on the first 55,000 of the 60,000 training images in file order, validate on the last
5,000 and test on the 10,000 test images. MNIST's files are known by their SHA-256; files of its format
with other numbers of images are read too, with a line in the log. Of every seven of the 1,797 digits, in file order,
five are for training, one for validation and one for the test.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torchvision
from sklearn.datasets import load_digits
from torch import Tensor

from pyro_vae.data import idx
from pyro_vae.data.images import DataError, Images, to_uint8

Source = Callable[[Path, bool], Images]
_LOG = logging.getLogger("pyro_vae")
_NUM_VALID = 5000


def load(
    name: str,
    root: Path,
    train_images: int | None = None,
    test_images: int | None = None,
    *,
    download: bool = True,
) -> Images:
    """Load a data set by name.

    Args:
        name: a key of `DATASETS`.
        root: folder of the downloaded data sets; the embedded digits need none.
        train_images: use only the first so many training images.
        test_images: likewise for the test.
        download: whether what is absent from `root` is downloaded into it; otherwise nothing is written there.

    Raises:
        DataError: unknown name, a file that is absent, damaged, inconsistent or not MNIST's, or too few images.
    """
    if name not in DATASETS:
        raise DataError(f"Unknown data set {name!r}; choose one of {', '.join(DATASETS)}.")
    images = DATASETS[name](root, download)
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


def _digits(root: Path, download: bool) -> Images:
    pixels = to_uint8(load_digits().images / 16, "digits")
    place = torch.arange(len(pixels)) % 7  # 7 shares no factor with the 10 of the cycling labels
    return Images("digits", pixels[place < 5], pixels[place == 5], pixels[place == 6])


def _idx(kind: type[torchvision.datasets.MNIST]) -> Source:
    def read(root: Path, download: bool) -> Images:
        raw = root / kind.__name__ / "raw"
        absent = [name for name in idx.DIGESTS if not os.path.isfile(raw / name)]
        if absent and not download:
            raise DataError(f"{raw} has no {absent[0]}: name the folder of your data sets by --data-root.")
        if absent:
            _download(kind, root, absent[0])
        is_mnist = kind is torchvision.datasets.MNIST
        train = torch.as_tensor(idx.read_split(raw, "train", _NUM_VALID + 1, is_mnist))
        test = torch.as_tensor(idx.read_split(raw, "t10k", 1, is_mnist))
        if [len(train), len(test)] != list(idx.SIZES.values()):
            _LOG.warning(f"{raw} is not {kind.__name__}: it holds {len(train)} training and {len(test)} test images.")
        return Images(kind.__name__, train[:-_NUM_VALID], train[-_NUM_VALID:], test)

    return read


def _download(kind: type[torchvision.datasets.MNIST], root: Path, absent: str) -> None:
    try:
        kind(root, download=True)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")
        where = root / kind.__name__ / "raw"
        raise DataError(f"{where} has no {absent}, and downloading failed ({reason}). {idx.REMEDY}") from error


# Each is called with the root folder and whether it may download into it.
DATASETS: dict[str, Source] = {
    "digits": _digits,
    "mnist": _idx(torchvision.datasets.MNIST),
    "fashion-mnist": _idx(torchvision.datasets.FashionMNIST),
    "kmnist": _idx(torchvision.datasets.KMNIST),
}
# How many training images each has, known before any file is read.
TRAINING_IMAGES = {"digits": 1285, "mnist": 55_000, "fashion-mnist": 55_000, "kmnist": 55_000}
