r"""Data sets by name, with verified files and permanent splits.

Most have a module in `named/` that documents its files and its splits.

MNIST and its relatives use the first 55,000 of the 60,000 training images, in file order, for training, the last 5,000
for validation, and the 10,000 test images for testing. The files of MNIST are verified by their SHA-256; files in the
same format with other numbers of images are accepted with a warning. Of every seven consecutive of the 1,797 digits, in
file order, five are for training, one for validation and one for testing. The shapes are described in `data.shapes`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pyro_vae.data import idx, shapes
from pyro_vae.data.arrays import to_uint8
from pyro_vae.data.collection import Collection
from pyro_vae.data.formats.decoding import Options
from pyro_vae.data.formats.own_files import from_path
from pyro_vae.data.images import Images
from pyro_vae.data.labels import Labels
from pyro_vae.data.named import (
    caltech_silhouettes,
    celeba64,
    cifar10,
    dsprites,
    emnist,
    files,
    omniglot,
    static_mnist,
    svhn,
)
from pyro_vae.data.named.held_out import hold_out
from pyro_vae.data.splits import OWN_SPLITS, Shares
from pyro_vae.errors import DataError

Source = Callable[[Path, bool], Images]


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """Default settings of a fit on a data set."""

    epochs: int = 100
    num_samples: int = 5000
    """Number K of importance samples per image of the estimated log-likelihood."""


@dataclass(frozen=True)
class Dataset(Defaults):
    """A named data set: its loader, and the default settings of a fit on it."""

    load: Source
    """Function load(root, download): reads the data set from `root`, and may download missing files into it."""
    reads_root: bool = True
    """Whether `load` reads files from `root`; digits and shapes have none."""


class Registry(dict[str, Dataset]):
    """Data sets by name. A function load(root, download) can be assigned, too, and then has the default settings."""

    def __setitem__(self, name: str, dataset: Dataset | Source) -> None:
        super().__setitem__(name, dataset if isinstance(dataset, Dataset) else Dataset(dataset))


# For your own data.
_OWN = Defaults(num_samples=1000)


def defaults(name: str) -> Defaults:
    """Return the default settings of a fit on a named data set, or on your own data, whose name is a path."""
    return DATASETS.get(name, _OWN)


_NUM_VALID = 5000


def load(
    name: Path | str,
    root: Path | str = "data",
    train_images: int | None = None,
    test_images: int | None = None,
    *,
    download: bool = True,
    image_size: int | None = None,
    channels: int | None = None,
    skip_bad: bool = False,
    splits: Shares = OWN_SPLITS,
) -> Collection:
    """Load a data set by name, or your own data by path.

    Args:
        name: A key of `DATASETS`, or a path; see `from_path`.
        root: Folder of the downloaded data sets, and of ``cache``, which stores the decoded images of your own data and
            of celeba64. Not used for digits and shapes.
        train_images: Use only the first N training images.
        test_images: Use only the first N test images.
        download: Download missing files into `root`, and write decoded images into its cache. If False, nothing is
            written.
        image_size: Height and width of your own images; see `size` in `from_folder`.
        channels: Number of channels of your own images; see `from_folder`.
        skip_bad: Skip your own image files that cannot be used; see `from_folder`.
        splits: Fractions of training, validation and test data, for your own data; see `from_arrays`.

    Raises:
        DataError: If `name` is neither a data set nor a path, a file is missing, damaged, inconsistent or not the
            original of MNIST, there are too few images, or an option for your own data does not apply.

    Example:
        >>> print(load("digits"))
        digits: 1,285 train, 256 valid, 256 test images of 8 x 8 gray pixels, 10 classes
    """
    images: Collection
    name = os.fspath(name)
    if name in DATASETS:
        if tuple(splits) != OWN_SPLITS:
            raise DataError(f"{name} has predefined splits: leave out --splits.")
        Options(image_size, channels, skip_bad).refuse(name)
        images = DATASETS[name].load(Path(root), download)
    elif os.path.exists(name):
        images = from_path(
            name,
            size=image_size,
            channels=channels,
            skip_bad=skip_bad,
            splits=splits,
            cache=Path(root) / "cache",
            write_cache=download,
        )
    else:
        names = ", ".join(DATASETS)
        path = "the path of a folder of images or a file of arrays"
        raise DataError(f"Unknown data set {name!r}; choose one of {names}, or {path}.")
    for split, number in (("train", train_images), ("test", test_images)):
        images = images if number is None else images.take(split, number)
    return images


def _digits(root: Path, download: bool) -> Images:
    from sklearn.datasets import load_digits  # lazily: importing scikit-learn takes seconds

    digits = load_digits()
    pixels, classes = to_uint8(digits.images / 16, "digits"), torch.as_tensor(digits.target).unsqueeze(1)
    remainder = torch.arange(len(pixels)) % 7  # labels cycle through the 10 classes, and 7 is coprime to 10
    splits = (remainder < 5, remainder == 5, remainder == 6)
    train, valid, test = (pixels[split] for split in splits)
    return Images("digits", train, valid, test, Labels(("class",), *(classes[split] for split in splits)))


def _idx(name: str) -> Source:
    def read(root: Path, download: bool) -> Images:
        def fetch(datasets: Any) -> None:  # torchvision uses the same name for the class and for its folder
            getattr(datasets, name)(root, download=True)

        raw = root / name / "raw"
        files.require(raw, list(idx.DIGESTS), fetch=fetch if download else None)
        is_mnist = name == "MNIST"
        train, train_classes = idx.read_split(raw, "train", _NUM_VALID + 1, is_mnist)
        test, test_classes = idx.read_split(raw, "t10k", 1, is_mnist)
        sizes = {"training": len(train), "test": len(test)}
        files.warn_of_other_sizes(raw, name, sizes, list(idx.SIZES.values()))
        return hold_out(name, raw, train, test, (train_classes, test_classes), _NUM_VALID)

    return read


# Each importance sample evaluates the decoder once: use 1000 for images of more than 28 x 28 pixels.
DATASETS = Registry(
    {
        "digits": Dataset(_digits, reads_root=False, epochs=300, num_samples=1000),
        "mnist": Dataset(_idx("MNIST")),
        "fashion-mnist": Dataset(_idx("FashionMNIST")),
        "kmnist": Dataset(_idx("KMNIST")),
        "emnist": Dataset(emnist.load),
        "static-mnist": Dataset(static_mnist.load),
        "omniglot": Dataset(omniglot.load),
        "caltech-silhouettes": Dataset(caltech_silhouettes.load, epochs=300),
        "cifar10": Dataset(cifar10.load, num_samples=1000),
        "svhn": Dataset(svhn.load, num_samples=1000),
        "shapes": Dataset(lambda root, download: shapes.load(), reads_root=False, num_samples=1000),
        "dsprites": Dataset(dsprites.load, epochs=10, num_samples=1000),
        "celeba64": Dataset(celeba64.load, epochs=30, num_samples=1000),
    }
)
