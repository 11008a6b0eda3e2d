r"""Shapes with five known factors, every combination of their values once; they are drawn here and kept on no disk.

    shape      square, ellipse (axes 2 : 1), heart (a square and a half disc on two of its sides), all of one area
    scale      the side of the square of that area: 6, 7, ..., 11 pixels
    rotation   0, 9, ..., 81 degrees clockwise about the centroid
    x, y       of the centroid: 9, 11, ..., 23 pixels from the left and from the top

White on black, 3 x 6 x 10 x 8 x 8 = 11,520 images of 32 x 32 pixels, each the share of 16 x 16 points within it that
the shape covers. They are in the spirit of dSprites (Matthey, Higgins, Hassabis, Lerchner, "dSprites: Disentanglement
testing Sprites dataset", 2017, https://github.com/google-deepmind/dsprites-dataset), whose rotations go full circle:
its square comes back four times and its ellipse twice. A quarter turn leaves no two images alike, so that all five
factors can be told from an image. What remains: for the square alone the rotations close to a circle, 81 degrees being
9 short of 0. With pixels cut at 128, 174 of the 180 sprites remain that differ.

A fixed permutation deals the images 10 : 1 : 1 to training, validation and test.
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
_HALF_WIDTH = 9  # pixels, at least as far as the longest half axis, 11 (2 / pi)^(1/2)
_SUBSAMPLES = 16
_SEED = 20170601  # of the permutation


@cache
def load() -> Images:
    """Draw the images, once for each process (less than half a second); labels are places of values."""
    sprites = _sprites()
    grid = (*sprites.shape[:3], len(POSITIONS), len(POSITIONS))
    pixels = np.zeros((*grid, _SIDE, _SIDE), np.uint8)
    for i, x in enumerate(POSITIONS - _HALF_WIDTH):
        for j, y in enumerate(POSITIONS - _HALF_WIDTH):
            pixels[:, :, :, i, j, y : y + 2 * _HALF_WIDTH, x : x + 2 * _HALF_WIDTH] = sprites
    # NumPy has frozen the streams of this generator: the splits are the same under every version.
    order = np.random.RandomState(_SEED).permutation(math.prod(grid))
    images = torch.from_numpy(pixels.reshape(-1, _SIDE, _SIDE)[order])
    labels = torch.from_numpy(np.indices(grid).reshape(len(grid), -1).T[order])
    sizes = [NUM_TRAIN, NUM_VALID, len(order) - NUM_TRAIN - NUM_VALID]
    train, valid, test = images.split(sizes)
    return Images("shapes", train, valid, test, Labels(FACTORS, *labels.split(sizes)))


def _sprites() -> np.ndarray:
    """Draw each shape at each scale and rotation about the middle, uint8 (shapes, scales, rotations, height, width).

    The points are counted, and none is within 1e-7 of an edge: rounding, which differs between machines, moves none.
    """
    x = (np.arange(2 * _HALF_WIDTH * _SUBSAMPLES) + 0.5) / _SUBSAMPLES - _HALF_WIDTH
    y = x[:, None]
    angles = np.deg2rad(ROTATIONS)[:, None, None]
    u, v = np.cos(angles) * x + np.sin(angles) * y, np.cos(angles) * y - np.sin(angles) * x
    sprites = np.empty((len(SHAPES), len(SCALES), len(ROTATIONS), 2 * _HALF_WIDTH, 2 * _HALF_WIDTH), np.uint8)
    for shape, depth in enumerate((_square, _ellipse, _heart)):
        for place, scale in enumerate(SCALES):
            inside = depth(u / scale, v / scale) > 0
            covered = inside.reshape(-1, 2 * _HALF_WIDTH, _SUBSAMPLES, 2 * _HALF_WIDTH, _SUBSAMPLES).sum((2, 4))
            sprites[shape, place] = (255 * covered + _SUBSAMPLES**2 // 2) // _SUBSAMPLES**2
    return sprites


# Shapes of area 1 about their centroid: positive inside, at points u to the right and v down.


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return 1 / 2 - np.maximum(abs(u), abs(v))


def _ellipse(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return 2 / math.pi - u**2 - (2 * v) ** 2


def _heart(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    side = (1 + math.pi / 4) ** -0.5
    middle = side * (math.pi / 16 + 1 / 12) / (1 + math.pi / 4)  # from the square's to the centroid, along each side
    p, q = (u - v) / 2**0.5 + middle, (-u - v) / 2**0.5 + middle
    square = side / 2 - np.maximum(abs(p), abs(q))
    discs = [side**2 / 4 - (p - side / 2) ** 2 - q**2, side**2 / 4 - p**2 - (q - side / 2) ** 2]
    return np.maximum.reduce([square, *discs])
