r"""dSprites: 64 x 64 images of white shapes on black, one for every combination of the values of five factors.

Matthey, Higgins, Hassabis, Lerchner, "dSprites: Disentanglement testing Sprites dataset", 2017
(https://github.com/google-deepmind/dsprites-dataset). The sixth factor of the file, color, has a single value and is
left out. Pixels 0 and 1 are mapped to 0 and 255. The images are permuted with a fixed seed and split 10 : 1 : 1 into
training, validation and test images.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from pyro_vae.data import npy
from pyro_vae.data.images import Images
from pyro_vae.data.labels import Labels
from pyro_vae.data.named import files
from pyro_vae.errors import DataError

_NUM_TRAIN = 614_400
_NAME = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
_FACTORS = {"color": 1, "shape": 3, "scale": 6, "orientation": 40, "x": 32, "y": 32}
_SEED = 20170602  # for the permutation
_PIECE = 8192  # images per chunk


def load(root: Path, download: bool) -> Images:
    """Read dSprites, 3 GB in memory. Its pickled metadata are not read.

    Raises:
        DataError: If the file is missing or damaged, a pixel is not 0 or 1, or the value of a factor is out of range.
    """
    (path,) = files.require(root / "dsprites", [_NAME], "dSprites by Matthey et al.")
    with npy.open_archive(path) as archive:
        classes = _checked(path, npy.read_member(archive, path, "latents_classes"))
        # RandomState is frozen by NumPy, so the splits are the same under every version.
        order = np.random.RandomState(_SEED).permutation(len(classes))
        target = order.argsort()
        pixels = np.empty((len(classes), 64, 64), np.uint8)  # chunks are permuted while reading, without a second copy
        done = 0
        for piece in npy.read_pieces(archive, path, "imgs", pixels.shape, _PIECE):
            if (largest := piece.max()) > 1:
                raise DataError(f"{path}: imgs holds {largest}, not 0 or 1. {files.REPLACE}")
            pixels[target[done : done + len(piece)]] = 255 * piece
            done += len(piece)
    held_out = len(classes) // 12
    sizes = {"training": len(classes) - 2 * held_out, "validation": held_out, "test": held_out}
    files.warn_of_other_sizes(path, "dSprites", sizes, (_NUM_TRAIN, _NUM_TRAIN // 10, _NUM_TRAIN // 10))
    train, valid, test = torch.from_numpy(pixels).split(list(sizes.values()))
    labels = torch.from_numpy(classes[order, 1:]).split(list(sizes.values()))
    return Images("dSprites", train, valid, test, Labels(tuple(_FACTORS)[1:], *labels))


def _checked(path: Path, classes: np.ndarray) -> np.ndarray:
    """Return the value indices of the factors, int64 (N, 6), if they are valid."""
    if classes.ndim != 2 or classes.shape[1] != len(_FACTORS) or classes.dtype.kind not in "iu":
        raise DataError(
            f"{path}: latents_classes is {classes.dtype} {classes.shape}, not integers (N, {len(_FACTORS)}). "
            f"{files.REPLACE}"
        )
    for name, values, number in zip(_FACTORS, classes.T, _FACTORS.values(), strict=True):
        bad = (values < 0) | (values >= number)
        if bad.any():
            raise DataError(
                f"{path}: latents_classes holds {values[bad][0]} as {name}, not 0 to {number - 1}. {files.REPLACE}"
            )
    return classes.astype(np.int64)
