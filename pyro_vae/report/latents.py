r"""Figures of latent units: traversals, images on a plane, and codes by class. Every function returns a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from pyro_vae.report.drawing import new_figure
from pyro_vae.report.images import labeled_rows, show_tiles, tile

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLORS = 10  # of classes; more classes differ in their markers, too
_MARKERS = ["o", "^", "s", "x", "D"]
_LEGEND_LINES = 20


def traversals(
    names: Mapping[int, str], decoded: Tensor, base: Tensor, low: Tensor, high: Tensor, title: str
) -> Figure:
    """Show one row of images for each unit that moves, with its name, its range, and its value for the test image.

    Args:
        names: Names of the rows by unit.
        decoded: Images of the rows at T equidistant values from `low` to `high`, shape (rows, T, ...).
        base: Units of the test image, shape (units,). A triangle marks that of each row; values outside the range are
            marked at the edges.
        low: Lowest value of each unit, shape (units,).
        high: Highest value of each unit, shape (units,).
        title: Title of the figure.
    """
    rows, marks = {}, []
    for (unit, name), row in zip(names.items(), decoded, strict=True):
        start, end, own = (float(values[unit]) for values in (low, high, base))
        rows[f"{name}\n{start:.2f} to {end:.2f}"] = row
        marks.append((own - start) / max(end - start, 1e-12))
    figure = labeled_rows(rows, f"{title}\ntriangle: value of the test image")
    (axes,) = figure.axes
    (height, width), steps = np.subtract(axes.images[0].get_size(), 1), decoded.shape[1]
    places = np.clip(0.5 + np.array(marks) * (steps - 1), 0, steps) * width / steps
    tops = np.arange(len(rows)) * height / len(rows)
    axes.plot(places, tops, marker=11, linestyle="none", color="C1", markersize=7, markeredgewidth=0, clip_on=False)
    return figure


def plane(images: Tensor, horizontal: Sequence[float], vertical: Sequence[float], title: str) -> Figure:
    """Show images decoded on a grid of two units, with the values of the units along its edges.

    Args:
        images: Images (rows, columns, ...).
        horizontal: Values of unit 0, by column.
        vertical: Values of unit 1, by row from top to bottom.
        title: Title of the figure.
    """
    tiles = tile(images.flatten(0, 1), len(horizontal))
    figure = new_figure(6, 0.8 + 5.4 * tiles.shape[0] / tiles.shape[1])
    axes = figure.subplots()
    show_tiles(axes, tiles, title, 5)
    axes.axis("on")
    axes.spines[:].set_visible(False)
    for axis, values, size in ((axes.xaxis, horizontal, tiles.shape[1]), (axes.yaxis, vertical, tiles.shape[0])):
        places = (np.arange(len(values)) + 0.5) * (size - 1) / len(values)
        axis.set_ticks(places, [f"{value:.1f}" for value in values], fontsize=7)
    axes.set(xlabel="unit 0", ylabel="unit 1")
    return figure


def scatter(codes: np.ndarray, classes: np.ndarray | None) -> Figure:
    """Plot two-dimensional codes, shape (N, 2), colored by the classes of their images, shape (N,)."""
    figure = new_figure(6, 5)
    axes = figure.subplots()
    groups = {"": np.full(len(codes), True)} if classes is None else {str(c): classes == c for c in np.unique(classes)}
    for index, (name, chosen) in enumerate(groups.items()):
        marker = _MARKERS[index // _COLORS % len(_MARKERS)]
        axes.scatter(codes[chosen, 0], codes[chosen, 1], s=8, marker=marker, label=name)
    if classes is not None:
        columns = -(-len(groups) // _LEGEND_LINES)
        axes.legend(title="class", ncols=columns, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    axes.set(xlabel="unit 0", ylabel="unit 1", title="posterior means of test images", aspect="equal")
    return figure
