r"""Images drawn; every function returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from torch import Tensor

from pyro_vae.report.labels import figure_label


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
        spot.set_title(figure_label(name))
    return figure


def image_grid(images: Tensor, title: str) -> Figure:
    """Draw images, see `are_pictures`, as a grid, ten in a row."""
    return _grid(images, title, min(10, len(images)))


def reconstructions(images: Tensor, decoded: Tensor, kind: str) -> Figure:
    """Draw images and, under each, what p(x|z) gives for one draw of z from q(z|x), as many; see `are_pictures`.

    Args:
        images: (N, ...).
        decoded: of the same shape.
        kind: what they are, such as "means of p(x|z)", for the title.
    """
    per_row = min(10, len(images))
    whole = len(images) // per_row * per_row
    rows = [half[:whole].unflatten(0, (-1, per_row)) for half in (images, decoded)]
    pairs = torch.stack(rows, dim=1).flatten(0, 2)
    return _grid(pairs, f"test images, and under them {kind},\nz from q(z|x)", per_row)


def side_by_side(panels: Mapping[str, Tensor], title: str, per_row: int) -> Figure:
    """Draw sets of images, see `are_pictures`, each as a grid under its name."""
    grids = {name: tile(images, per_row) for name, images in panels.items()}
    figure = Figure(figsize=(5 * len(panels), 5.6), layout="constrained")
    figure.suptitle(title)
    for axes, (name, tiles) in zip(figure.subplots(1, len(panels), squeeze=False)[0], grids.items(), strict=True):
        _show(axes, tiles, name)
    return figure


def labeled_rows(images_by_name: Mapping[str, Tensor], title: str) -> Figure:
    """Draw a row of images, see `are_pictures`, for each name, which stands before it."""
    tiles = tile(torch.cat(list(images_by_name.values())), len(next(iter(images_by_name.values()))))
    figure = Figure(figsize=(7.5, 0.5 + 6 * tiles.shape[0] / tiles.shape[1]), layout="constrained")
    axes = figure.subplots()
    _show(axes, tiles, title)
    height = tiles.shape[0] / len(images_by_name)
    axes.axis("on")
    axes.set_frame_on(False)
    axes.set_xticks([])
    axes.set_yticks([(row + 0.5) * height for row in range(len(images_by_name))], list(images_by_name), fontsize=8)
    axes.tick_params(length=0)
    return figure


def scatter(codes: np.ndarray, classes: np.ndarray | None) -> Figure:
    """Draw codes of two units (N, 2), colored by the classes of their images (N,)."""
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    groups = {"": np.full(len(codes), True)} if classes is None else {str(c): classes == c for c in np.unique(classes)}
    for name, chosen in groups.items():
        axes.scatter(codes[chosen, 0], codes[chosen, 1], s=5, label=name)
    if classes is not None:
        axes.legend(title="class", fontsize=7)
    axes.set(xlabel="unit 0", ylabel="unit 1", title="posterior means of test images", aspect="equal")
    return figure


def are_pictures(images: Tensor) -> bool:
    """Return whether images can be drawn: (N, height, width), or (N, C, height, width) of one or three channels."""
    return images.dim() == 3 or (images.dim() == 4 and images.shape[1] in (1, 3))


def tile(images: Tensor, per_row: int) -> np.ndarray:
    """Return images in [0, 1], see `are_pictures`, as one, with a gray line around each."""
    from torchvision.utils import make_grid  # on use: it takes a second to import

    colored = images.dim() == 4
    shown = images.detach().cpu().float().clamp(0, 1)
    tiles = make_grid(shown if colored else shown.unsqueeze(1), nrow=per_row, padding=1, pad_value=0.5)
    return (tiles.movedim(0, -1) if colored else tiles[0]).numpy()


def _grid(images: Tensor, title: str, per_row: int) -> Figure:
    tiles = tile(images, per_row)
    figure = Figure(figsize=(6, 0.4 + 6 * tiles.shape[0] / tiles.shape[1]), layout="constrained")
    _show(figure.subplots(), tiles, title)
    return figure


def _show(axes: Axes, tiles: np.ndarray, title: str) -> None:
    axes.imshow(tiles, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title)
    axes.axis("off")
