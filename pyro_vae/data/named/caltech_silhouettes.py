r"""Caltech 101 Silhouettes: 28 x 28 filled outlines of objects of 101 classes, with predefined splits.

Marlin, Swersky, Chen, de Freitas, "Inductive Principles for Restricted Boltzmann Machine Learning", AISTATS 2010.
As in the file, the silhouette is 0 and the background 1; they are mapped to 0 and 255. Some papers invert them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.images import Images
from pyro_vae.data.labels import Labels
from pyro_vae.data.named import files, mat
from pyro_vae.errors import DataError

_NAME = "caltech101_silhouettes_28_split1.mat"
_SPLITS = {"train": "training", "val": "validation", "test": "test"}
_NUM_CLASSES = 101


def load(root: Path, download: bool) -> Images:
    """Read Caltech 101 Silhouettes.

    Raises:
        DataError: If the file is missing or damaged, a pixel is not 0 or 1, or a label is not between 1 and 101.
    """
    (path,) = files.require(root / "caltech-silhouettes", [_NAME], "Caltech 101 Silhouettes by Benjamin Marlin")
    shapes = {f"{split}_data": (mat.ANY, 784) for split in _SPLITS}
    variables = mat.read(path, shapes | {f"{split}_labels": (mat.ANY, mat.ANY) for split in _SPLITS})
    train, valid, test = (_pixels(path, f"{split}_data", variables[f"{split}_data"]) for split in _SPLITS)
    sizes = dict(zip(_SPLITS.values(), map(len, (train, valid, test)), strict=True))
    files.warn_of_other_sizes(path, "Caltech 101 Silhouettes", sizes, (4_100, 2_264, 2_307))
    names = [f"{split}_labels" for split in _SPLITS]
    classes = [
        mat.classes(path, name, variables[name], n, _NUM_CLASSES) - 1
        for name, n in zip(names, sizes.values(), strict=True)
    ]
    return Images("Caltech 101 Silhouettes", train, valid, test, Labels(("class",), *classes))


def _pixels(path: Path, name: str, values: np.ndarray) -> Tensor:
    bad = ~np.isin(values, (0, 1))
    if bad.any():
        raise DataError(f"{path}: {name} holds {values[bad][0]:g}, not 0 or 1. {files.REPLACE}")
    return torch.from_numpy(255 * mat.upright(values).astype(np.uint8))
