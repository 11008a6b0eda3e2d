r"""Numbers drawn; every function returns a matplotlib figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pyro_vae.evaluate import Scores, khat_threshold
from pyro_vae.evaluate.likelihood.diagnostics import is_arviz_1
from pyro_vae.report.labels import figure_label

_CALIBRATED_UNITS = 6


def learning_curve(metrics: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the training and validation ELBO over epochs, and the objective where it is another."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    epochs = [line["epoch"] + 1 for line in metrics]
    curves = {"elbo": "training ELBO", "valid_elbo": "validation ELBO"}
    if all(line["elbo"] is None for line in metrics):
        curves = {"valid_distortion": "validation, minus the distortion"}
    if any(line["objective"] != line["elbo"] for line in metrics):
        curves["objective"] = "training objective"
    drawn = []
    for key, label in curves.items():
        sign = -1 if key == "valid_distortion" else 1
        values = [math.nan if line[key] is None else sign * line[key] for line in metrics]
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
    axes.set_xscale("log")  # before there is a curve, since there may be none
    for index, (name, scores) in enumerate(runs.items()):
        mean = scores.iwae.mean(axis=1)
        error = scores.iwae.std(axis=1, ddof=1) / math.sqrt(scores.num_images) if scores.num_images > 1 else None
        sizes = np.array(scores.particle_counts) * 1.06**index  # aside, so that error bars do not hide one another
        values = "no log weights" if scores.reason else f"ELBO {mean[0]:.2f}, log p(x) {mean[-1]:.2f}"
        label = f"{figure_label(name)}: {values}"
        axes.errorbar(sizes, mean, error, color=f"C{index}", marker="o", markersize=4, capsize=2, label=label)
        axes.axhline(mean[-1], color=f"C{index}", linestyle="--", linewidth=1)
    axes.set(
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
    good = khat_threshold(num_samples)
    colors = np.where(values > good, "C3", "C0")
    axes.scatter(np.arange(len(values)), values, s=8, c=colors)
    axes.axhline(good, color="C3", linestyle="--", linewidth=1)
    exists = ~np.isnan(values)
    title = f"{int((values > good).sum())} of {int(exists.sum())} images above {good:.2f}"
    axes.set(
        xlabel="test image",
        ylabel=r"Pareto $\hat{k}$",
        title=title if exists.any() else "k-hat does not exist",
    )
    return figure


def calibration(ranks: np.ndarray, num_samples: int) -> Figure:
    """Draw how the ranks (N, units) among L draws depart from uniform, with ArviZ's simultaneous band.

    Of many units the six that depart most are drawn.
    """
    import arviz  # on use: both take long to import
    import scipy.stats

    shares = (ranks + 0.5) / (num_samples + 1)
    grid = (np.arange(len(shares)) + 0.5)[:, None] / len(shares)
    farthest = np.abs(np.sort(shares, axis=0) - grid).max(0).argsort()[::-1][:_CALIBRATED_UNITS]
    units = np.sort(farthest)
    if is_arviz_1():
        newer: Any = arviz
        groups = {"prior_sbc": {"z": shares[None, :, units]}}
        data = newer.from_dict(groups, dims={"z": ["unit"]}, coords={"unit": units})
        return newer.plot_ecdf_pit(data, backend="matplotlib").viz["figure"].item()
    figure = Figure(figsize=(9, 2.8 * -(-len(units) // 3)), layout="constrained")
    spots = figure.subplots(-(-len(units) // 3), 3, squeeze=False).flatten()
    for spot in spots[len(units) :]:
        spot.axis("off")
    uniform = scipy.stats.uniform()
    band = {"cdf": uniform.cdf, "rvs": uniform.rvs, "random_state": np.random.default_rng(0)}
    for spot, unit in zip(spots, units, strict=False):
        points = np.linspace(0, 1, 101)
        arviz.plot_ecdf(shares[:, unit], eval_points=points, difference=True, confidence_bands=True, ax=spot, **band)
        spot.set(title=f"unit {unit}", xlabel="rank / draws", ylabel="ECDF - uniform")
    return figure


def rate_distortion(summaries: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw runs by rate and distortion, nats per image; along a dashed line the ELBO, minus their sum, is the same.

    Alemi et al., "Fixing a Broken ELBO", ICML 2018 (https://arxiv.org/abs/1711.00464).
    """
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    ordered = sorted(summaries.items(), key=lambda item: item[1]["rate"])
    rates, distortions = ([numbers[key] for _, numbers in ordered] for key in ("rate", "distortion"))
    axes.plot(rates, distortions, color="0.7", linewidth=1, zorder=0)
    for index, (name, numbers) in enumerate(ordered):
        elbo = "no ELBO" if numbers["elbo"] is None else f"ELBO {numbers['elbo']:.2f}"
        label = f"{figure_label(name)}: {elbo}"
        axes.scatter(numbers["rate"], numbers["distortion"], color=f"C{index}", label=label)
        axes.axline(
            (numbers["rate"], numbers["distortion"]), slope=-1, color=f"C{index}", linestyle="--", linewidth=0.5
        )
    axes.set(xlabel="rate, nats per image", ylabel="distortion, nats per image")
    axes.legend()
    return figure


def intervals(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw how far each row of a comparison is below the best, with two standard errors of the paired difference."""
    figure = Figure(figsize=(7, 1 + 0.45 * len(rows)), layout="constrained")
    axes = figure.subplots()
    positions = np.arange(len(rows))[::-1]
    below = [-row["below_best"] for row in rows]
    axes.errorbar(below, positions, xerr=[2 * row["below_best_se"] for row in rows], fmt="o", capsize=3)
    axes.axvline(0, color="0.7", linewidth=1, zorder=0)
    axes.set_yticks(positions, [f"{figure_label(row['name'])}  {row['log_likelihood']:.2f}" for row in rows])
    axes.set(xlabel="log p(x) against the best, nats per image (2 s.e., paired over images)")
    return figure


def probe(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw accuracy over the number of labels, a panel for each classifier, a line for each kind of features."""
    kinds = list(dict.fromkeys(row["features"] for row in rows))
    classifiers = list(dict.fromkeys(row["classifier"] for row in rows))
    figure = Figure(figsize=(4 * len(classifiers), 4), layout="constrained")
    panels = figure.subplots(1, len(classifiers), sharey=True, squeeze=False)[0]
    for axes, classifier in zip(panels, classifiers, strict=True):
        panel_rows = [row for row in rows if row["classifier"] == classifier]
        for index, features in enumerate(dict.fromkeys(row["features"] for row in panel_rows)):
            points = [
                (row["labels"], row["accuracy"], row["se"] or 0.0) for row in panel_rows if row["features"] == features
            ]
            labels, means, errors = np.array(points).T
            style: dict[str, Any] = {"color": f"C{kinds.index(features)}", "marker": "o", "markersize": 4, "capsize": 2}
            axes.errorbar(labels * 1.06**index, means, errors, label=features, **style)  # aside, as in `bounds`
        axes.set(xscale="log", xlabel="labels", title=classifier)
        axes.legend(loc="lower right")
    panels[0].set(ylabel="accuracy on test images (1 s.e.)")
    return figure
