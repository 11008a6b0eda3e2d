r"""MATLAB files up to version 7.2, .mat: named arrays of numbers. Reading them runs no code."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.named.files import REPLACE
from pyro_vae.errors import DataError

ANY = -1
_NUMBERS = "uif"


def read(path: Path, shapes: Mapping[str, tuple[int, ...]], optional: Collection[str] = ()) -> dict[str, np.ndarray]:
    """Read variables from a file.

    Args:
        path: Path of the file.
        shapes: Shape of each variable. `ANY` matches any size.
        optional: Names of the variables that may be missing.

    Returns:
        The variables that are in the file.

    Raises:
        DataError: If the file cannot be read, or a variable is missing, not an array of numbers or of another shape.
    """
    from scipy.io import loadmat  # lazily: few data sets need it

    try:
        content = loadmat(path, variable_names=list(shapes), appendmat=False)
    except Exception as error:  # the parser may raise anything for untrusted bytes
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise DataError(f"{path} cannot be read as a MATLAB file ({reason}). {REPLACE}") from error
    variables = {}
    for name, shape in shapes.items():
        if name not in content:
            if name in optional:
                continue
            raise DataError(f"{path} holds no {name}. {REPLACE}")
        array = content[name]
        if not isinstance(array, np.ndarray) or array.dtype.kind not in _NUMBERS:
            raise DataError(f"{path}: {name} is not an array of numbers. {REPLACE}")
        if array.ndim != len(shape) or any(n not in (ANY, m) for n, m in zip(shape, array.shape, strict=True)):
            expected = " x ".join("N" if n == ANY else str(n) for n in shape)
            raise DataError(f"{path}: {name} is {' x '.join(map(str, array.shape))}, not {expected}. {REPLACE}")
        variables[name] = array
    return variables


def classes(path: Path, name: str, labels: np.ndarray, number: int, num_classes: int) -> Tensor:
    """Return labels between 1 and `num_classes` as int64, shape (N, 1).

    Args:
        path: Path of the file, for error messages.
        name: Name of the variable, for error messages.
        labels: The labels, in any shape.
        number: Number N of images.
        num_classes: Largest label.

    Raises:
        DataError: If there are not `number` labels, or a label is not an integer between 1 and `num_classes`.
    """
    if labels.size != number:
        raise DataError(f"{path}: {name} has {labels.size} labels for {number} images. {REPLACE}")
    bad = ~np.isin(labels, np.arange(1, num_classes + 1))
    if bad.any():
        raise DataError(f"{path}: {name} holds a label {labels[bad][0]:g}, not 1 to {num_classes}. {REPLACE}")
    return torch.from_numpy(labels.astype(np.int64).reshape(-1, 1))


def upright(images: np.ndarray) -> np.ndarray:
    """Return images (N, 784), flattened column by column as in MATLAB, as (N, 28, 28)."""
    return np.ascontiguousarray(images.reshape(-1, 28, 28).swapaxes(1, 2))
