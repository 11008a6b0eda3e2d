r"""Files of MATLAB up to version 7.2, .mat: named arrays of numbers. They hold no code."""

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
    """Read variables of a file.

    Args:
        path: of the file.
        shapes: by the names of the variables; ANY stands for any number.
        optional: names of those that may be absent.

    Returns:
        The variables that are there.

    Raises:
        DataError: the file cannot be read, or a variable is absent, no array of numbers or of another shape.
    """
    from scipy.io import loadmat  # on use: few data sets need it

    try:
        found = loadmat(path, variable_names=list(shapes), appendmat=False)
    except Exception as error:  # of a parser of anybody's bytes
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise DataError(f"{path} cannot be read as a file of MATLAB ({reason}). {REPLACE}") from error
    variables = {}
    for name, shape in shapes.items():
        if name not in found:
            if name in optional:
                continue
            raise DataError(f"{path} holds no {name}. {REPLACE}")
        array = found[name]
        if not isinstance(array, np.ndarray) or array.dtype.kind not in _NUMBERS:
            raise DataError(f"{path}: {name} is no array of numbers. {REPLACE}")
        if array.ndim != len(shape) or any(n not in (ANY, m) for n, m in zip(shape, array.shape, strict=True)):
            expected = " x ".join("N" if n == ANY else str(n) for n in shape)
            raise DataError(f"{path}: {name} is {' x '.join(map(str, array.shape))}, not {expected}. {REPLACE}")
        variables[name] = array
    return variables


def classes(path: Path, name: str, labels: np.ndarray, number: int, num_classes: int) -> Tensor:
    """Return the labels of so many images, int64 (N, 1), between 1 and `num_classes`.

    Raises:
        DataError: they are not as many, or one is no such number; names the variable.
    """
    if labels.size != number:
        raise DataError(f"{path}: {name} has {labels.size} labels of {number} images. {REPLACE}")
    bad = ~np.isin(labels, np.arange(1, num_classes + 1))
    if bad.any():
        raise DataError(f"{path}: {name} holds a label {labels[bad][0]:g}, not 1 to {num_classes}. {REPLACE}")
    return torch.from_numpy(labels.astype(np.int64).reshape(-1, 1))


def upright(images: np.ndarray) -> np.ndarray:
    """Return images (N, 784), whose columns stand one after the other as MATLAB has them, as (N, 28, 28)."""
    return np.ascontiguousarray(images.reshape(-1, 28, 28).swapaxes(1, 2))
