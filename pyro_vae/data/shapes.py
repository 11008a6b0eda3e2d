r"""Shapes with five known factors, one image for every combination of their values. They are generated, not stored.

    shape      square, ellipse (axes 2 : 1), heart (a square and half discs on two of its sides), all of equal area
    scale      side of the square with that area: 6, 7, ..., 11 pixels
    rotation   0, 9, ..., 81 degrees clockwise about the centroid
    x, y       position of the centroid: 9, 11, ..., 23 pixels from the left and from the top

White on black, 3 x 6 x 10 x 8 x 8 = 11,520 images of 32 x 32 pixels. A pixel is the fraction of 16 x 16 points inside
it that the shape covers. The images resemble dSprites (Matthey, Higgins, Hassabis, Lerchner, "dSprites: Disentanglement
testing Sprites dataset", 2017, https://github.com/google-deepmind/dsprites-dataset), whose rotations cover 360 degrees,
so that squares repeat four times and ellipses twice. Here, rotations stay below 90 degrees and no two images are equal,
so that all five factors are identifiable from an image. The rotations of the square are still periodic: 81 degrees is
9 degrees short of 0. Thresholded at 128, 174 of the 180 sprites (shape, scale and rotation) remain distinct.

The images are permuted with a fixed seed and split 10 : 1 : 1 into training, validation and test images.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch

from pyro_vae.data.images import Images
from pyro_vae.data.labels import Labels

FACTORS = ("shape", "scale", "rotation", "x", "y")
SHAPES = ("square", "ellipse", "heart")
SCALES = np.arange(6, 12)
ROTATIONS = np.arange(0, 90, 9)
POSITIONS = np.arange(9, 25, 2)
NUM_TRAIN, NUM_VALID = 9600, 960

_SIDE = 32
_HALF_WIDTH = 9  # in pixels; at least the longest half axis, 11 (2 / pi)^(1/2) = 8.8
_SUBSAMPLES = 16
_SEED = 20170601  # for the permutation


@cache
def load() -> Images:
    """Generate the images, once per process (less than half a second). Labels are indices of the factor values."""
    sprites = _sprites()
    grid = (*sprites.shape[:3], len(POSITIONS), len(POSITIONS))
    pixels = np.zeros((*grid, _SIDE, _SIDE), np.uint8)
    for i, x in enumerate(POSITIONS - _HALF_WIDTH):
        for j, y in enumerate(POSITIONS - _HALF_WIDTH):
            pixels[:, :, :, i, j, y : y + 2 * _HALF_WIDTH, x : x + 2 * _HALF_WIDTH] = sprites
    # RandomState is frozen by NumPy, so the splits are the same under every version.
    order = np.random.RandomState(_SEED).permutation(math.prod(grid))
    images = torch.from_numpy(pixels.reshape(-1, _SIDE, _SIDE)[order])
    labels = torch.from_numpy(np.indices(grid).reshape(len(grid), -1).T[order])
    sizes = [NUM_TRAIN, NUM_VALID, len(order) - NUM_TRAIN - NUM_VALID]
    train, valid, test = images.split(sizes)
    return Images("shapes", train, valid, test, Labels(FACTORS, *labels.split(sizes)))


def _sprites() -> np.ndarray:
    """Return each shape at each scale and rotation, uint8 (shapes, scales, rotations, height, width).

    A pixel counts the covered subsample points. No point is within 1e-7 of an edge, so that rounding errors, which
    differ between machines, cannot change a count.
    """
    x = (np.arange(2 * _HALF_WIDTH * _SUBSAMPLES) + 0.5) / _SUBSAMPLES - _HALF_WIDTH
    y = x[:, None]
    angles = np.deg2rad(ROTATIONS)[:, None, None]
    u, v = np.cos(angles) * x + np.sin(angles) * y, np.cos(angles) * y - np.sin(angles) * x
    sprites = np.empty((len(SHAPES), len(SCALES), len(ROTATIONS), 2 * _HALF_WIDTH, 2 * _HALF_WIDTH), np.uint8)
    for shape, depth in enumerate((_square, _ellipse, _heart)):
        for size, scale in enumerate(SCALES):
            inside = depth(u / scale, v / scale) > 0
            covered = inside.reshape(-1, 2 * _HALF_WIDTH, _SUBSAMPLES, 2 * _HALF_WIDTH, _SUBSAMPLES).sum((2, 4))
            sprites[shape, size] = (255 * covered + _SUBSAMPLES**2 // 2) // _SUBSAMPLES**2
    return sprites


# Shapes of area 1 with the centroid at 0. The functions are positive inside the shape, with u to the right and v down.


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return 1 / 2 - np.maximum(abs(u), abs(v))


def _ellipse(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return 2 / math.pi - u**2 - (2 * v) ** 2


def _heart(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    side = (1 + math.pi / 4) ** -0.5
    middle = side * (math.pi / 16 + 1 / 12) / (1 + math.pi / 4)  # from the square's center to the centroid, per axis
    p, q = (u - v) / 2**0.5 + middle, (-u - v) / 2**0.5 + middle
    square = side / 2 - np.maximum(abs(p), abs(q))
    discs = [side**2 / 4 - (p - side / 2) ** 2 - q**2, side**2 / 4 - p**2 - (q - side / 2) ** 2]
    return np.maximum.reduce([square, *discs])
