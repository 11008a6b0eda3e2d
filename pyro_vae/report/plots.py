r"""What people look at; every function returns a matplotlib figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from torch import Tensor
from torchvision.utils import make_grid

from pyro_vae.evaluate import Scores, good_khat


def learning_curve(metrics: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the training and validation ELBO over epochs, and the objective where it is another."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    epochs = [line["epoch"] + 1 for line in metrics]
    curves = {"elbo": "training ELBO", "valid_elbo": "validation ELBO"}
    if any(line["objective"] != line["elbo"] for line in metrics):
        curves["objective"] = "training objective"
    drawn = []
    for key, label in curves.items():
        values = [math.nan if line[key] is None else line[key] for line in metrics]
        axes.plot(epochs, values, label=label, marker="." if len(values) < 20 else None)
        drawn += values
    # The first epochs are far below; the eye needs the rest.
    if len(epochs) > 4:
        low, high = np.nanpercentile(drawn, [5, 100])
        axes.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))
    axes.set(xlabel="epoch", ylabel="nats per image")
    axes.legend()
    return figure


def bounds(runs: Mapping[str, Scores]) -> Figure:
    """Draw, for each run, the IWAE bound over K from the ELBO (K = 1) to the estimate of log p(x), dashed."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for place, (name, scores) in enumerate(runs.items()):
        mean = scores.iwae.mean(axis=1)
        error = scores.iwae.std(axis=1, ddof=1) / math.sqrt(scores.num_images) if scores.num_images > 1 else None
        sizes = np.array(scores.ladder) * 1.06**place  # aside, so that error bars do not hide one another
        label = f"{name}: ELBO {mean[0]:.2f}, log p(x) {mean[-1]:.2f}"
        axes.errorbar(sizes, mean, error, color=f"C{place}", marker="o", markersize=4, capsize=2, label=label)
        axes.axhline(mean[-1], color=f"C{place}", linestyle="--", linewidth=1)
    axes.set(
        xscale="log",
        xlabel="K",
        ylabel=r"IWAE$_K$, nats per image",
        title="error bars: 1 s.e. over images, shared along a curve",
    )
    axes.legend(loc="lower right")
    return figure


def khat(values: np.ndarray, num_samples: int) -> Figure:
    """Draw the k-hat of every image (N,) against the largest good one."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    good = good_khat(num_samples)
    colours = np.where(values > good, "C3", "C0")
    axes.scatter(np.arange(len(values)), values, s=8, c=colours)
    axes.axhline(good, color="C3", linestyle="--", linewidth=1)
    exists = ~np.isnan(values)
    title = f"{int((values > good).sum())} of {int(exists.sum())} images above {good:.2f}"
    axes.set(
        xlabel="test image",
        ylabel=r"Pareto $\hat{k}$",
        title=title if exists.any() else "k-hat does not exist",
    )
    return figure


def intervals(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw how far each row of a comparison is below the best, with two standard errors of the paired difference."""
    figure = Figure(figsize=(7, 1 + 0.45 * len(rows)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(rows))[::-1]
    below = [-row["below_best"] for row in rows]
    axes.errorbar(below, places, xerr=[2 * row["below_best_se"] for row in rows], fmt="o", capsize=3)
    axes.axvline(0, color="0.7", linewidth=1, zorder=0)
    axes.set_yticks(places, [f"{row['name']}  {row['log_likelihood']:.2f}" for row in rows])
    axes.set(xlabel="log p(x) against the best, nats per image (2 s.e., paired over images)")
    return figure


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
        spot.set_title(name)
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
