"""Grids of images: those of torchvision, and reduced if they have more pixels than a figure shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.utils import make_grid

from pyro_vae.instruments import samples
from pyro_vae.report import images


@pytest.mark.parametrize("shape", [(2, 3), (1, 4, 2), (3, 5, 4)])
@pytest.mark.parametrize(("number", "per_row"), [(2, 5), (6, 3), (7, 3), (5, 1)])
def test_grid_is_that_of_torchvision(shape: tuple[int, ...], number: int, per_row: int) -> None:
    x = torch.rand(number, *shape, dtype=torch.float32) * 1.4 - 0.2
    tiles = make_grid(x.clamp(0, 1).view(number, -1, *shape[-2:]), nrow=per_row, padding=1, pad_value=0.5)
    expected = tiles.movedim(0, -1).numpy() if shape[0] == 3 and len(shape) == 3 else tiles[0].numpy()
    np.testing.assert_array_equal(images.tile(x, per_row), expected)


@pytest.mark.parametrize(("height", "width"), [(512, 512), (512, 300), (1000, 3)])
def test_large_images_are_reduced_by_averages_of_blocks(height: int, width: int) -> None:
    """Every shown pixel is the mean of its block; the last blocks may be smaller."""
    x = torch.rand(10, height, width, dtype=torch.float32)
    found = images.tile(x, 5)
    block = -(-max(2 * height, 5 * width) // images.MOST_PIXELS)
    assert block == 2 or (height, width) != (512, 512)
    rows, columns = -(-height // block), -(-width // block)
    assert found.shape == (2 * (rows + 1) + 1, 5 * (columns + 1) + 1)
    for place in ((0, 0), (rows - 1, columns - 1), (rows // 2, columns - 1)):
        top, left = (block * index for index in place)
        mean = x[7, top : top + block, left : left + block].mean()
        assert found[1 + (rows + 1) + place[0], 1 + 2 * (columns + 1) + place[1]] == pytest.approx(
            float(mean), rel=1e-5
        )


@pytest.mark.parametrize(("size", "zoom"), [(8, 3), (28, 3), (200, 1)])
def test_animation_runs_forward_and_backward_and_is_enlarged_only_if_small(size: int, zoom: int) -> None:
    frames = torch.rand(4, 5, size, size)
    shown = samples._forward_and_backward(frames, 5)
    expected = [(255 * images.tile(frames[index], 5)).round().astype(np.uint8) for index in (0, 1, 2, 3, 2, 1)]
    assert all(np.array_equal(a[::zoom, ::zoom], b) for a, b in zip(shown, expected, strict=True))
    assert shown[0].shape == (zoom * expected[0].shape[0], zoom * expected[0].shape[1])
