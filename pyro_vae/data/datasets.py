r"""Where images come from: data sets by name, their files checked, their splits stable for ever.

MNIST and its relatives train on the first 55,000 of the 60,000 training images in file order, validate on the last
5,000 and test on the 10,000 test images. MNIST's files are known by their SHA-256; files of its format
with other numbers of images are read too, with a line in the log. Of every seven of the 1,797 digits, in file order,
five are for training, one for validation and one for the test. For the shapes see `data.shapes`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from pyro_vae.data import idx, shapes
from pyro_vae.data.array_files import from_file
from pyro_vae.data.arrays import to_uint8
from pyro_vae.data.folders import from_folder
from pyro_vae.data.images import Images
from pyro_vae.data.labels import Labels
from pyro_vae.errors import DataError

Source = Callable[[Path, bool], Images]


@dataclass(frozen=True)
class Dataset:
    """A data set, and the defaults of a fit on it."""

    load: Source
    """Called with the folder of the downloaded data sets, and whether it may download into it."""
    num_train: int
    """Training images, known before any file is read."""
    epochs: int = 100
    num_samples: int = 5000
    """K of the importance-sampled log-likelihood."""


# The defaults of a fit on images of one's own, whose number nobody knows before they are read.
_OWN = Dataset(lambda root, download: from_folder(root), 0, num_samples=1000)


def defaults(name: str) -> Dataset:
    """Return the row of a data set, or the defaults for the path of images of your own."""
    return DATASETS.get(name, _OWN)


_LOG = logging.getLogger("pyro_vae")
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
) -> Images:
    """Load a data set by name, or images of your own from a folder.

    Args:
        name: a key of `DATASETS`, or the path of a folder of image files or of a file of arrays; see `from_folder` and
            `from_file`.
        root: folder of the downloaded data sets, and of ``cache``, where the decoded images of folders are kept; digits
            and shapes need none.
        train_images: use only the first so many training images.
        test_images: likewise for the test.
        download: whether what is absent from `root` is downloaded or decoded into it; otherwise nothing is written
            there.
        image_size: height and width of images of your own, as `size` in `from_folder`.
        channels: of images of your own, as in `from_folder`.
        skip_bad: likewise.

    Raises:
        DataError: neither a name nor a folder, a file that is absent, damaged, inconsistent or not MNIST's, or too few
            images; or an option of images of your own is set and the data set has a name.
    """
    folder = name not in DATASETS and os.path.isdir(name)
    if name not in DATASETS and not os.path.exists(name):
        known = ", ".join(DATASETS)
        own = "the path of a folder of images or a file of arrays"
        raise DataError(f"Unknown data set {name!r}; choose one of {known}, or {own}.")
    if not folder and (image_size is not None or channels is not None or skip_bad):
        raise DataError(f"{name} is read as it is: leave out --image-size, --channels and --skip-bad.")
    if folder:
        images = from_folder(
            name,
            size=image_size,
            channels=channels,
            skip_bad=skip_bad,
            cache=Path(root) / "cache",
            write_cache=download,
        )
    elif name in DATASETS:
        images = DATASETS[name].load(Path(root), download)
    else:
        images = from_file(name)
    for split, number in (("train", train_images), ("test", test_images)):
        images = images if number is None else images.first(split, number)
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
        raw = root / name / "raw"
        absent = [file for file in idx.DIGESTS if not os.path.isfile(raw / file)]
        if absent and not download:
            raise DataError(f"{raw} has no {absent[0]}: name the folder of your data sets by --data-root.")
        if absent:
            _download(name, root, absent[0])
        is_mnist = name == "MNIST"
        train, train_classes = idx.read_split(raw, "train", _NUM_VALID + 1, is_mnist)
        test, test_classes = idx.read_split(raw, "t10k", 1, is_mnist)
        if [len(train), len(test)] != list(idx.SIZES.values()):
            _LOG.warning(f"{raw} is not {name}: it holds {len(train)} training and {len(test)} test images.")
        labels = Labels(("class",), train_classes[:-_NUM_VALID], train_classes[-_NUM_VALID:], test_classes)
        return Images(name, train[:-_NUM_VALID], train[-_NUM_VALID:], test, labels)

    return read


def _download(name: str, root: Path, absent: str) -> None:
    """Download a data set of torchvision's of this name, which is also that of its folder."""
    import torchvision  # on use: it takes seconds to import

    try:
        getattr(torchvision.datasets, name)(root, download=True)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")
        where = root / name / "raw"
        raise DataError(f"{where} has no {absent}, and downloading failed ({reason}). {idx.REMEDY}") from error


DATASETS: dict[str, Dataset] = {
    "digits": Dataset(_digits, 1285, epochs=300, num_samples=1000),
    "mnist": Dataset(_idx("MNIST"), 55_000),
    "fashion-mnist": Dataset(_idx("FashionMNIST"), 55_000),
    "kmnist": Dataset(_idx("KMNIST"), 55_000),
    "shapes": Dataset(lambda root, download: shapes.load(), shapes.NUM_TRAIN, num_samples=1000),
}
