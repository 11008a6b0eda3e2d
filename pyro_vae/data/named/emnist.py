r"""EMNIST: 28 x 28 handwritten digits and letters, in the balanced split of 47 classes.

Cohen, Afshar, Tapson, van Schaik, "EMNIST: an extension of MNIST to handwritten letters", IJCNN 2017
(https://arxiv.org/abs/1702.05373). The classes are the digits, the upper-case letters and the eleven lower-case letters
abdefghnqrt. Images in the files are transposed. The last 18,800 of the 112,800 training images in file order are for
validation.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from pyro_vae.data import idx
from pyro_vae.data.images import Images
from pyro_vae.data.named import files
from pyro_vae.data.named.held_out import hold_out

_NUM_CLASSES = 47
_NUM_VALID = 18_800


def load(root: Path, download: bool) -> Images:
    """Read the balanced split of EMNIST, which torchvision downloads if it is missing.

    Raises:
        DataError: If a file is missing or damaged, or has other contents.
    """
    folder = root / "EMNIST" / "raw"
    names = [
        f"emnist-balanced-{split}-{kind}-ubyte"
        for split in ("train", "test")
        for kind in ("images-idx3", "labels-idx1")
    ]
    source = "the balanced split of EMNIST by Cohen et al., in MNIST's format, unpacked"
    train_images, train_labels, test_images, test_labels = files.require(
        folder, names, source, partial(_fetch, root) if download else None
    )
    train, train_classes = _read(train_images, train_labels, _NUM_VALID + 1)
    test, test_classes = _read(test_images, test_labels, 1)
    sizes = {"training": len(train), "test": len(test)}
    files.warn_of_other_sizes(folder, "the balanced split of EMNIST", sizes, (112_800, 18_800))
    return hold_out("EMNIST", folder, train, test, (train_classes, test_classes), _NUM_VALID)


def _read(images: Path, labels: Path, min_images: int) -> tuple[Tensor, Tensor]:
    pixels, classes, _ = idx.read_pair(images, labels, min_images, _NUM_CLASSES)
    return pixels.transpose(1, 2).contiguous(), classes


def _fetch(root: Path, datasets: Any) -> None:
    for train in (True, False):  # torchvision downloads both splits, but only if the requested one is incomplete
        datasets.EMNIST(root, split="balanced", train=train, download=True)
