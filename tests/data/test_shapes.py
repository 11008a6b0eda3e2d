"""The shapes data set: areas, centroids and angles match the factors, and every combination occurs once."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_vae import data
from pyro_vae.data import shapes

SPLITS = ("train", "valid", "test")


@pytest.fixture(scope="module")
def grid() -> np.ndarray:
    """Return the images ordered by factor, (shape, scale, rotation, x, y, height, width), in [0, 1]."""
    images = data.load("shapes", Path())
    assert images.labels is not None
    assert images.labels.names == ("shape", "scale", "rotation", "x", "y")
    pixels = np.full((3, 6, 10, 8, 8, 32, 32), np.nan)
    for split in SPLITS:
        pixels[tuple(getattr(images.labels, split).numpy().T)] = getattr(images, split).numpy() / 255
    return pixels


def moments(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return area and centroid, in pixels from the left and the top."""
    middle = np.arange(32) + 0.5
    area = pixels.sum((-2, -1))
    return area, (pixels.sum(-2) * middle).sum(-1) / area, (pixels.sum(-1) * middle).sum(-1) / area


def test_splits_partition_the_grid(grid: np.ndarray) -> None:
    images = data.load("shapes", Path())
    assert [len(getattr(images, split)) for split in SPLITS] == [9600, 960, 960]
    assert not np.isnan(grid).any()  # as many distinct combinations as images: each of the 11,520 occurs once


def test_images_are_distinct() -> None:
    images = data.load("shapes", Path())
    every = torch.cat([getattr(images, split) for split in SPLITS])
    assert len(torch.unique(every, dim=0)) == len(every)


def test_every_factor_value_is_in_every_split() -> None:
    labels = data.load("shapes", Path()).labels
    assert labels is not None
    for split in SPLITS:
        for name, number in zip(labels.names, (3, 6, 10, 8, 8), strict=True):
            assert labels.get(name, split).unique().tolist() == list(range(number))


def test_area_is_the_square_of_the_scale(grid: np.ndarray) -> None:
    """For every shape, within the error of 16 points per side with 1 or 2 lines of points on an edge."""
    area, _, _ = moments(grid)
    np.testing.assert_allclose(np.sqrt(area), np.broadcast_to(np.arange(6, 12)[:, None, None, None], area.shape), 0.01)


def test_centroid_is_at_x_and_y(grid: np.ndarray) -> None:
    """Whatever shape, scale and rotation, within 1/64 pixel, a quarter of the distance between two points."""
    _, x, y = moments(grid)
    places = np.arange(9, 25, 2)
    np.testing.assert_allclose(x, np.broadcast_to(places[:, None], x.shape), rtol=0, atol=1 / 64)
    np.testing.assert_allclose(y, np.broadcast_to(places, y.shape), rtol=0, atol=1 / 64)


@pytest.mark.parametrize(("shape", "order"), [(0, 4), (1, 2), (2, 3)])
def test_moments_rotate_with_the_angle(shape: int, order: int, grid: np.ndarray) -> None:
    """Sum of (dx + i dy)^n rotates by n times the angle, n the symmetry of the square and the ellipse.

    Pixels blur the highest moments of the smallest shapes by a tenth of a step, of the largest by a hundredth.
    """
    middle = np.arange(32) + 0.5 - 15
    power = (middle + 1j * middle[:, None]) ** order
    found = (grid[shape, :, :, 3, 3] * power).sum((-2, -1))  # about (15, 15), clockwise since y points down
    turned = np.angle(found / found[:, :1] * np.exp(-1j * order * np.deg2rad(9 * np.arange(10)))) / order
    assert np.rad2deg(np.abs(turned)).max() < 0.9
    assert np.rad2deg(np.abs(turned[-1])).max() < 0.15


def test_ellipse_is_twice_as_long_as_wide(grid: np.ndarray) -> None:
    """The second moments of an ellipse with half-axes a, b are a^2/4 and b^2/4; pixels add 1/12 to each."""
    middle = np.arange(32) + 0.5 - 15
    image = grid[1, -1, 0, 3, 3]
    long, short = ((image.sum(axis) * middle**2).sum() / image.sum() - 1 / 12 for axis in (0, 1))
    assert long == pytest.approx(11**2 * 2 / np.pi / 4, rel=0.01)
    assert long / short == pytest.approx(4, rel=0.02)


def test_square_and_upright_heart_have_their_shapes(grid: np.ndarray) -> None:
    square, heart = grid[0, 2, 0, 3, 3], grid[2, -1, 0, 3, 3]
    expected = np.zeros((32, 32))
    expected[11:19, 11:19] = 1  # scale 8 about 15
    np.testing.assert_array_equal(square, expected)
    np.testing.assert_array_equal(heart[:, :30], heart[:, 29::-1])  # symmetric about 15
    widths = heart.sum(1)
    assert (np.diff(widths[16:24]) < 0).all()  # narrowing downwards to a tip
    top = heart[np.flatnonzero(widths)[0]]
    assert top[14] < top.max()  # a notch between two lobes


def test_bytes_never_change() -> None:
    """No counted point is closer than 1e-7 to an edge, 1e8 times the rounding error."""
    images = data.load("shapes", Path())
    shapes.load.cache_clear()
    again = data.load("shapes", Path())
    assert again is not images
    for each in (images, again):
        pixels = torch.cat([getattr(each, split) for split in SPLITS]).numpy()
        digest = hashlib.sha256(pixels.tobytes()).hexdigest()
        assert digest == "e256eba86ed0e0771e516bdd6a2722171e6f3d0394272d4a12975e419576ea26"


def test_no_point_lies_on_an_edge() -> None:
    place = (np.arange(18 * 16) + 0.5) / 16 - 9
    angles = np.deg2rad(9 * np.arange(10))[:, None, None]
    u = np.cos(angles) * place + np.sin(angles) * place[:, None]
    v = np.cos(angles) * place[:, None] - np.sin(angles) * place
    nearest = min(
        abs(depth(u / scale, v / scale)).min()
        for depth in (shapes._square, shapes._ellipse, shapes._heart)
        for scale in range(6, 12)
    )
    assert nearest > 1e-7
