r"""Omniglot: handwritten characters of 50 alphabets, as 28 x 28 gray images in the split of Burda et al.

Lake, Salakhutdinov, Tenenbaum, "Human-level concept learning through probabilistic program induction", Science 2015;
Burda, Grosse, Salakhutdinov, "Importance Weighted Autoencoders", ICLR 2016 (https://arxiv.org/abs/1509.00519). Gray
levels in [0, 1] are rounded to 256 levels. The class is the alphabet, if the file contains it. The last 1,345 of the
24,345 training images in file order are for validation.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.arrays import to_uint8
from pyro_vae.data.images import Images
from pyro_vae.data.named import files, mat
from pyro_vae.data.named.held_out import hold_out

_LOG = logging.getLogger("pyro_vae")
_SHAPES = {"data": (784, mat.ANY), "testdata": (784, mat.ANY), "target": (50, mat.ANY), "testtarget": (50, mat.ANY)}
_LABELS = ("target", "testtarget")
_NUM_VALID = 1345


def load(root: Path, download: bool) -> Images:
    """Read Omniglot.

    Raises:
        DataError: If the file is missing or damaged, or a pixel is outside [0, 1].
    """
    folder = root / "omniglot"
    (path,) = files.require(folder, ["chardata.mat"], "the split of Burda et al., from their code for IWAE")
    variables = mat.read(path, _SHAPES, optional=_LABELS)
    train, test = (to_uint8(mat.upright(variables[name].T), f"{path}: {name}") for name in ("data", "testdata"))
    files.warn_of_other_sizes(path, "Burda's Omniglot", {"training": len(train), "test": len(test)}, (24_345, 8_070))
    return hold_out("Omniglot", path, train, test, _alphabets(path, variables, (len(train), len(test))), _NUM_VALID)


def _alphabets(path: Path, variables: dict[str, np.ndarray], numbers: tuple[int, int]) -> tuple[Tensor, Tensor] | None:
    """Return the alphabets of both splits, int64 (N, 1); or None if not every image has exactly one."""
    if not all(name in variables for name in _LABELS):
        return None
    one_hot = [variables[name] for name in _LABELS]
    for codes, number in zip(one_hot, numbers, strict=True):
        if codes.shape[1] != number or not np.isin(codes, (0, 1)).all() or (codes.sum(0) != 1).any():
            names = " and ".join(_LABELS)
            _LOG.warning(f"{path}: {names} do not give exactly one alphabet per image; no labels are read.")
            return None
    train, test = (torch.from_numpy(codes.argmax(0)).unsqueeze(1) for codes in one_hot)
    return train, test
