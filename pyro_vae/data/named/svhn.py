r"""SVHN: 32 x 32 color images of house numbers. The class is the central digit.

Netzer, Wang, Coates, Bissacco, Wu, Ng, "Reading Digits in Natural Images with Unsupervised Feature Learning", NIPS
Workshop on Deep Learning and Unsupervised Feature Learning 2011. The digit 0 has the label 10 in the files. The last
5,000 training images in file order are for validation; the 531,131 extra images are not used.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.images import Images
from pyro_vae.data.named import files, mat
from pyro_vae.data.named.held_out import hold_out
from pyro_vae.errors import DataError

_NUM_VALID = 5000


def load(root: Path, download: bool) -> Images:
    """Read SVHN, which torchvision downloads if it is missing.

    Raises:
        DataError: If a file is missing or damaged, pixels have another shape, or a label is not between 1 and 10.
    """
    folder = root / "svhn"
    train, train_classes = _read(folder, "train", download)
    test, test_classes = _read(folder, "test", download)
    files.warn_of_other_sizes(folder, "SVHN", {"training": len(train), "test": len(test)}, (73_257, 26_032))
    return hold_out("SVHN", folder, train, test, (train_classes, test_classes), _NUM_VALID)


def _read(folder: Path, split: str, download: bool) -> tuple[Tensor, Tensor]:
    """Return pixels, uint8 (N, 3, 32, 32), and classes, int64 (N, 1)."""
    fetch = partial(_fetch, folder, split) if download else None
    source = "the cropped digits of The Street View House Numbers by Netzer et al."
    (path,) = files.require(folder, [f"{split}_32x32.mat"], source, fetch)
    variables = mat.read(path, {"X": (32, 32, 3, mat.ANY), "y": (mat.ANY, mat.ANY)})
    if variables["X"].dtype != np.uint8:
        raise DataError(f"{path}: X is {variables['X'].dtype}, not uint8. {files.REPLACE}")
    pixels = np.ascontiguousarray(variables["X"].transpose(3, 2, 0, 1))
    return torch.from_numpy(pixels), mat.classes(path, "y", variables["y"], len(pixels), 10) % 10


def _fetch(folder: Path, split: str, datasets: Any) -> None:
    datasets.SVHN(folder, split=split, download=True)
