r"""Figures of rate and distortion. Every function returns a matplotlib figure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from pyro_vae.evaluate import Scores
from pyro_vae.report.drawing import legend_below, new_figure
from pyro_vae.report.labels import figure_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def rate_distortion(runs: Mapping[str, Scores]) -> Figure:
    """Plot the mean rate and distortion of runs; of a single run, also those of each image.

    Dashed lines have constant ELBO = -(rate + distortion). Alemi et al., "Fixing a Broken ELBO", ICML 2018
    (https://arxiv.org/abs/1711.00464).
    """
    figure = new_figure(6, 5)
    axes = figure.subplots()
    if len(runs) == 1:
        (scores,) = runs.values()
        axes.scatter(scores.rate, scores.distortion, s=5, color="0.7", label="single test images")
    points = [(scores.rate.mean(), scores.distortion.mean(), scores.elbo.mean(), name) for name, scores in runs.items()]
    points.sort()
    axes.plot(*zip(*(point[:2] for point in points), strict=True), color="0.7", linewidth=1, zorder=0)
    for index, (rate, distortion, elbo, name) in enumerate(points):
        label = f"{figure_label(name)}: " + ("no ELBO" if math.isnan(elbo) else f"ELBO {elbo:.2f}")
        axes.scatter(rate, distortion, color=f"C{index}", label=label)
        axes.axline((rate, distortion), slope=-1, color=f"C{index}", linestyle="--", linewidth=0.5)
    axes.set(
        xlabel="rate, nats per image",
        ylabel="distortion, nats per image",
        title="means over test images; dashed: equal ELBO",
    )
    legend_below(figure)
    return figure


def annealed_rate_distortion(rate: np.ndarray, distortion: np.ndarray) -> Figure:
    """Plot upper bounds on the rate of the optimal code over its distortion. -log p(x) is their sum at the last point.

    Huang, Cao, Grosse, "Evaluating lossy compression rates of deep generative models", ICML 2020
    (https://arxiv.org/abs/2008.06653).

    Args:
        rate: Mean rates at temperatures from 0 to 1, in nats per image, shape (G,).
        distortion: Mean distortions there, in nats per image, shape (G,).
    """
    figure = new_figure(6, 5)
    axes = figure.subplots()
    axes.plot(distortion, rate, marker=".")
    end = (float(distortion[-1]), float(rate[-1]))
    axes.axline(end, slope=-1, color="0.5", linestyle="--", linewidth=0.5, label=f"log p(x) = {-sum(end):.2f}")
    axes.set(
        xlabel="distortion -log p(x|z), nats per image",
        ylabel="rate, nats per image",
        title="upper bounds on the rate at each distortion; dashed: equal log p(x)",
    )
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure
