r"""Figures of tables: data with samples or reconstructions. Every function returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from pyro_vae.report.drawing import interpolation, legend_below, new_figure
from pyro_vae.report.labels import figure_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_PAIR_COLUMNS = 6  # maximum number of columns in a pair plot; wider tables are shown as heat maps
_LEAST_WIDTH = 4.5  # inches, so that the titles fit
_SPREAD = 3.0  # range of the colors of a heat map, in standard deviations on either side of the mean


def distributions(data: Tensor, samples: Tensor, columns: Sequence[str], title: str) -> Figure:
    """Plot data and samples, shape (N, columns): all pairs of up to six columns, or a heat map of each set."""
    if data.shape[1] <= MAX_PAIR_COLUMNS:
        return _pairs({"data": data, "samples": samples}, columns, title)
    return _heat_maps({"data": data, "samples": samples}, title)


def reconstructions(data: Tensor, means: Tensor, columns: Sequence[str]) -> Figure:
    """Plot reconstructions over data, shape (N, columns): a panel for each of up to six columns, or two heat maps."""
    title = "test rows and their reconstructions"
    if data.shape[1] > MAX_PAIR_COLUMNS:
        return _heat_maps({"test rows": data, "reconstructions": means}, title)
    num_columns = data.shape[1]
    figure = new_figure(max(_LEAST_WIDTH, 2.4 * num_columns), 2.9)
    figure.suptitle(title)
    for axes, name, x, y in zip(
        figure.subplots(1, num_columns, squeeze=False)[0], columns, _columns(data), _columns(means), strict=True
    ):
        axes.scatter(x, y, s=6)
        axes.axline((x.mean(), x.mean()), slope=1, color="0.6", lw=1)
        axes.set(title=figure_label(name), xlabel="data", ylabel="reconstruction")
    return figure


def _pairs(sets: Mapping[str, Tensor], columns: Sequence[str], title: str) -> Figure:
    num_columns = len(columns)
    figure = new_figure(max(_LEAST_WIDTH, 1 + 1.7 * num_columns), 1 + 1.7 * num_columns)
    figure.suptitle(title)
    grid = figure.subplots(num_columns, num_columns, squeeze=False)
    values = {name: _columns(rows) for name, rows in sets.items()}
    for row in range(num_columns):
        for column in range(num_columns):
            axes = grid[row][column]
            if column > row:
                axes.axis("off")
            elif column == row:
                edges = np.histogram_bin_edges(np.concatenate([columns_of[row] for columns_of in values.values()]), 20)
                for name, columns_of in values.items():
                    axes.hist(columns_of[row], edges, density=True, histtype="step", label=name)
                axes.set_yticks([])
            else:
                for columns_of in values.values():
                    axes.scatter(columns_of[column], columns_of[row], s=3, alpha=0.5)
            if row == num_columns - 1:
                axes.set_xlabel(figure_label(columns[column]))
            if column == 0 and row > 0:
                axes.set_ylabel(figure_label(columns[row]))
    legend_below(figure)
    return figure


def _heat_maps(sets: Mapping[str, Tensor], title: str) -> Figure:
    """Show each set as a heat map, standardized by the column means and standard deviations of the first set."""
    first = next(iter(sets.values())).double()
    center, spread = first.mean(0), first.std(0, correction=0).clamp(min=1e-12)
    figure = new_figure(5 * len(sets), 4.6)
    figure.suptitle(title)
    for axes, (name, rows) in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets.items(), strict=True):
        scaled = ((rows.double() - center) / spread).cpu().numpy()
        sampling = interpolation(scaled.shape[1], 4)
        shown = axes.imshow(scaled, cmap="coolwarm", vmin=-_SPREAD, vmax=_SPREAD, aspect="auto", interpolation=sampling)
        axes.set(title=name, xlabel="column", ylabel="row")
    figure.colorbar(shown, ax=figure.axes, label="standard deviations of the data's columns")
    return figure


def _columns(rows: Tensor) -> np.ndarray:
    """Return rows (N, columns) as (columns, N)."""
    return np.asarray(rows.detach().cpu().double().numpy().T)
