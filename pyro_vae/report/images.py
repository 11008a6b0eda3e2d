r"""Figures of images. Every function that draws returns a matplotlib figure.

Images are tensors in [0, 1] of shape (N, height, width), or (N, C, height, width) with one or three channels; see
`are_pictures`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from pyro_vae.report.drawing import interpolation, new_figure
from pyro_vae.report.labels import figure_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PIXELS = 2400  # height or width of a grid; a figure shows fewer


def gallery(pictures: Mapping[str, Path]) -> Figure:
    """Show the PNG file of each run under its name, three per row."""
    from matplotlib.image import imread  # imported on use, see `drawing.style`

    columns = min(3, len(pictures))
    height = -(-len(pictures) // columns)
    figure = new_figure(4 * columns, 4.4 * height)
    figure.set_layout_engine("compressed")  # for panels of fixed aspect, whose titles would be cut off
    panels = figure.subplots(height, columns, squeeze=False).flatten()
    for panel in panels:
        panel.axis("off")
    for panel, (name, path) in zip(panels, pictures.items(), strict=False):
        panel.imshow(imread(path))
        panel.set_title(figure_label(name))
    return figure


def image_grid(images: Tensor, title: str) -> Figure:
    """Show images as a grid, ten per row."""
    return _grid(images, title, min(10, len(images)))


def reconstructions(images: Tensor, decoded: Tensor, kind: str) -> Figure:
    """Show test images in full rows of up to ten, with the reconstruction of each below it.

    Args:
        images: Test images, shape (N, ...).
        decoded: Their reconstructions for one sample of z from q(z|x), shape (N, ...).
        kind: Kind of the reconstructions for the title, such as "means of p(x|z)".
    """
    per_row = min(10, len(images))
    num_shown = len(images) // per_row * per_row
    rows = [half[:num_shown].unflatten(0, (-1, per_row)) for half in (images, decoded)]
    pairs = torch.stack(rows, dim=1).flatten(0, 2)
    return _grid(pairs, f"test images above {kind},\nz from q(z|x)", per_row)


def side_by_side(panels: Mapping[str, Tensor], title: str, per_row: int) -> Figure:
    """Show several sets of images, each as a grid under its name."""
    grids = {name: tile(images, per_row) for name, images in panels.items()}
    figure = new_figure(5 * len(panels), 5.6)
    figure.suptitle(title)
    for axes, (name, tiles) in zip(figure.subplots(1, len(panels), squeeze=False)[0], grids.items(), strict=True):
        show_tiles(axes, tiles, name, 5)
    return figure


def labeled_rows(images_by_name: Mapping[str, Tensor], title: str) -> Figure:
    """Show one row of images per name, with the name to its left. Pixels that are NaN are hatched."""
    num_rows, per_row = len(images_by_name), len(next(iter(images_by_name.values())))
    tiles = tile(torch.cat(list(images_by_name.values())), per_row)
    height, width = tiles.shape[:2]
    figure = new_figure(7.5, 0.2 * (2 + title.count("\n")) + 6.2 * height / width)
    axes = figure.subplots()
    show_tiles(axes, tiles, title, 6)
    axes.axis("on")
    axes.set_frame_on(False)
    axes.set_xticks([])
    axes.set_yticks([(row + 0.5) * height / num_rows for row in range(num_rows)], list(images_by_name), fontsize=8)
    axes.tick_params(length=0)
    return figure


def are_pictures(images: Tensor) -> bool:
    """Return whether images can be shown: (N, height, width), or (N, C, height, width) with one or three channels."""
    return images.dim() == 3 or (images.dim() == 4 and images.shape[1] in (1, 3))


def tile(images: Tensor, per_row: int) -> np.ndarray:
    """Tile images into one array, (height, width) or (height, width, 3), with gray borders of one pixel.

    Images of a grid with more pixels than a figure can show are reduced by averaging blocks of pixels.
    """
    columns, rows = min(per_row, len(images)), -(-len(images) // per_row)
    block = -(-max(columns * images.shape[-1], rows * images.shape[-2]) // MOST_PIXELS)
    colored = images.dim() == 4 and images.shape[1] == 3
    height, width = (-(-size // block) for size in images.shape[-2:])
    tiles = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, 3 if colored else 1), 0.5, np.float32)
    for index, image in enumerate(images):
        shown = image.detach().cpu().float().clamp(0, 1).reshape(-1, *image.shape[-2:])
        if block > 1:
            shown = avg_pool2d(shown.unsqueeze(0), block, ceil_mode=True)[0]
        top, left = (
            1 + place * (size + 1) for place, size in zip(divmod(index, columns), (height, width), strict=True)
        )
        tiles[top : top + height, left : left + width] = shown.movedim(0, -1)
    return tiles if colored else tiles[..., 0]


def _grid(images: Tensor, title: str, per_row: int) -> Figure:
    tiles = tile(images, per_row)
    figure = new_figure(6, 0.2 * (2 + title.count("\n")) + 6 * tiles.shape[0] / tiles.shape[1])
    show_tiles(figure.subplots(), tiles, title, 6)
    return figure


def show_tiles(axes: Axes, tiles: np.ndarray, title: str, inches: float) -> None:
    """Show tiles in a panel about `inches` wide. Pixels that are NaN are transparent, over a hatched panel."""
    from matplotlib.patches import Rectangle  # imported on use, see `drawing.style`

    missing = np.isnan(tiles)
    if missing.any():
        if tiles.ndim == 3:  # of color images, matplotlib takes transparency from a fourth channel only
            tiles = np.dstack([np.nan_to_num(tiles), ~missing.any(-1)])
        height, width = tiles.shape[:2]
        below = Rectangle((-0.5, -0.5), width, height, color="0.4", fill=False, hatch="/////", linewidth=0, zorder=-1)
        axes.add_patch(below)
    axes.imshow(tiles, cmap="gray", vmin=0, vmax=1, interpolation=interpolation(tiles.shape[1], inches))
    axes.set_title(title)
    axes.axis("off")
