r"""Where images come from: data sets by name, their files checked, their splits stable for ever.

Most have a module of their own in `named/`, which says what is read and how it is split.

MNIST and its relatives train on the first 55,000 of the 60,000 training images in file order, validate on the last
5,000 and test on the 10,000 test images. MNIST's files are known by their SHA-256; files of its format
with other numbers of images are read too, with a line in the log. Of every seven of the 1,797 digits, in file order,
five are for training, one for validation and one for the test. For the shapes see `data.shapes`.
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
    """The defaults of a fit on a data set."""

    epochs: int = 100
    num_samples: int = 5000
    """K of the importance-sampled log-likelihood."""


@dataclass(frozen=True)
class Dataset(Defaults):
    """A data set, and the defaults of a fit on it."""

    load: Source
    """Called with the folder of the downloaded data sets, and whether it may download into it."""


# Of data of a user's own.
_OWN = Defaults(num_samples=1000)


def defaults(name: str) -> Defaults:
    """Return the defaults of a fit on a data set, or on images of your own, whose name is a path."""
    return DATASETS.get(name, _OWN)


_NUM_VALID = 5000


def load(
    name: str,
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
    """Load a data set by name, or data of your own by their path.

    Args:
        name: a key of `DATASETS`, or a path; see `from_path`.
        root: folder of the downloaded data sets, and of ``cache``, where decoded images of your own are kept; digits
            and shapes need none.
        train_images: use only the first so many training images.
        test_images: likewise for the test.
        download: whether what is absent from `root` is downloaded or decoded into it; otherwise nothing is written
            there.
        image_size: height and width of images of your own, as `size` in `from_folder`.
        channels: of images of your own, as in `from_folder`.
        skip_bad: likewise.
        splits: shares of training, validation and test data of your own; see `from_arrays`.

    Raises:
        DataError: neither a name nor a path, a file that is absent, damaged, inconsistent or not MNIST's, or too few
            images; or an option of data of your own is set that does not apply.
    """
    images: Collection
    if name in DATASETS:
        if tuple(splits) != OWN_SPLITS:
            raise DataError(f"{name} has splits of its own: leave out --splits.")
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
        known = ", ".join(DATASETS)
        own = "the path of a folder of images or a file of arrays"
        raise DataError(f"Unknown data set {name!r}; choose one of {known}, or {own}.")
    for split, number in (("train", train_images), ("test", test_images)):
        images = images if number is None else images.take(split, number)
    return images


def _digits(root: Path, download: bool) -> Images:
    from sklearn.datasets import load_digits  # on use: scikit-learn takes seconds to import

    digits = load_digits()
    pixels, classes = to_uint8(digits.images / 16, "digits"), torch.as_tensor(digits.target).unsqueeze(1)
    place = torch.arange(len(pixels)) % 7  # 7 shares no factor with the 10 of the cycling labels
    splits = (place < 5, place == 5, place == 6)
    train, valid, test = (pixels[split] for split in splits)
    return Images("digits", train, valid, test, Labels(("class",), *(classes[split] for split in splits)))


def _idx(name: str) -> Source:
    def read(root: Path, download: bool) -> Images:
        def fetch(datasets: Any) -> None:  # torchvision's name of the data set is also that of its folder
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


# Importance samples take a decoder's run each: 1000 where images have more than 28 x 28 pixels.
DATASETS: dict[str, Dataset] = {
    "digits": Dataset(_digits, epochs=300, num_samples=1000),
    "mnist": Dataset(_idx("MNIST")),
    "fashion-mnist": Dataset(_idx("FashionMNIST")),
    "kmnist": Dataset(_idx("KMNIST")),
    "emnist": Dataset(emnist.load),
    "static-mnist": Dataset(static_mnist.load),
    "omniglot": Dataset(omniglot.load),
    "caltech-silhouettes": Dataset(caltech_silhouettes.load, epochs=300),
    "cifar10": Dataset(cifar10.load, num_samples=1000),
    "svhn": Dataset(svhn.load, num_samples=1000),
    "shapes": Dataset(lambda root, download: shapes.load(), num_samples=1000),
    "dsprites": Dataset(dsprites.load, epochs=10, num_samples=1000),
    "celeba64": Dataset(celeba64.load, epochs=30, num_samples=1000),
}
