r"""Images drawn; every function returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from torch import Tensor
from torchvision.utils import make_grid

from pyro_vae.report import names


def gallery(pictures: Mapping[str, Path]) -> Figure:
    """Draw the PNG files of several runs side by side, three in a row."""
    columns = min(3, len(pictures))
    height = -(-len(pictures) // columns)
    figure = Figure(figsize=(4 * columns, 4.4 * height), layout="constrained")
    spots = figure.subplots(height, columns, squeeze=False).flatten()
    for spot in spots:
        spot.axis("off")
    for spot, (name, path) in zip(spots, pictures.items(), strict=False):
        spot.imshow(imread(path))
        spot.set_title(names.label(name))
    return figure


def image_grid(images: Tensor, title: str) -> Figure:
    """Draw images (N, height, width) in [0, 1] as a grid, ten in a row."""
    return _grid(images, title, min(10, len(images)))


def reconstructions(images: Tensor, means: Tensor) -> Figure:
    """Draw images and, under each, the mean of p(x|z) for one draw of z, both (N, height, width)."""
    per_row = min(10, len(images))
    whole = len(images) // per_row * per_row
    rows = [half[:whole].unflatten(0, (-1, per_row)) for half in (images, means)]
    pairs = torch.stack(rows, dim=1).flatten(0, 2)
    return _grid(pairs, "test images, and under each its reconstruction", per_row)


def _grid(images: Tensor, title: str, per_row: int) -> Figure:
    tiles = make_grid(images.detach().cpu().float().clamp(0, 1).unsqueeze(1), nrow=per_row, padding=1, pad_value=0.5)
    figure = Figure(figsize=(6, 0.4 + 6 * tiles.shape[1] / tiles.shape[2]), layout="constrained")
    axes = figure.subplots()
    axes.imshow(tiles[0].numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title)
    axes.axis("off")
    return figure
