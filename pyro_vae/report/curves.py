r"""Curves and scatter plots. Every function returns a matplotlib figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_vae.evaluate import Scores, khat_threshold
from pyro_vae.evaluate.likelihood.diagnostics import is_arviz_1
from pyro_vae.report.drawing import new_figure
from pyro_vae.report.labels import figure_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CALIBRATED_UNITS = 6  # maximum number of panels in a calibration plot


def learning_curve(metrics: Sequence[Mapping[str, Any]]) -> Figure:
    """Plot the training and validation ELBO over epochs, and the objective if it differs from the ELBO.

    Args:
        metrics: Epochs of a run as in metrics.jsonl, values in nats per image. None is shown as a gap.
    """
    figure = new_figure(6, 4)
    axes = figure.subplots()
    epochs = [line["epoch"] + 1 for line in metrics]
    curves = {"elbo": "training ELBO", "valid_elbo": "validation ELBO"}
    if all(line["elbo"] is None for line in metrics):
        curves = {"valid_distortion": "validation, negative distortion"}
    if any(line["objective"] != line["elbo"] for line in metrics):
        curves["objective"] = "training objective"
    drawn = []
    for key, label in curves.items():
        sign = -1 if key == "valid_distortion" else 1
        values = [math.nan if line[key] is None else sign * line[key] for line in metrics]
        axes.plot(epochs, values, label=label, marker="." if len(values) < 20 else None)
        drawn += values
    # Clip the axis: the low values of the first epochs would flatten the rest of the curve.
    if len(epochs) > 4:
        low, high = np.nanpercentile(drawn, [5, 100])
        axes.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))
    axes.set(xlabel="epoch", ylabel="nats per image")
    axes.legend()
    return figure


def bounds(runs: Mapping[str, Scores]) -> Figure:
    """Plot the IWAE bound of each run over K, from the ELBO (K = 1) to the estimate of log p(x), the dashed line."""
    figure = new_figure(7, 4.5)
    axes = figure.subplots()
    axes.set_xscale("log")  # before plotting, since all curves may be empty
    for index, (name, scores) in enumerate(runs.items()):
        mean = scores.iwae.mean(axis=1)
        error = scores.iwae.std(axis=1, ddof=1) / math.sqrt(scores.num_images) if scores.num_images > 1 else None
        sizes = np.array(scores.particle_counts) * 1.06**index  # offset, so that error bars do not overlap
        estimate = scores.log_likelihood.mean()  # above the last bound if the proposal is adapted
        values = "no log weights" if scores.reason else f"ELBO {mean[0]:.2f}, log p(x) {estimate:.2f}"
        label = f"{figure_label(name)}: {values}"
        axes.errorbar(sizes, mean, error, color=f"C{index}", marker="o", markersize=4, capsize=2, label=label)
        axes.axhline(estimate, color=f"C{index}", linestyle="--", linewidth=1)
    axes.set(
        xlabel="K",
        ylabel=r"IWAE$_K$, nats per image",
        title="error bars: 1 s.e. over images, correlated along each curve",
    )
    axes.legend(loc="lower right")
    return figure


def khat(values: np.ndarray, num_samples: int) -> Figure:
    """Plot the k-hat of each image, shape (N,), with the reliability threshold for `num_samples` samples."""
    figure = new_figure(6, 4)
    axes = figure.subplots()
    threshold = khat_threshold(num_samples)
    colors = np.where(values > threshold, "C3", "C0")
    axes.scatter(np.arange(len(values)), values, s=8, c=colors)
    axes.axhline(threshold, color="C3", linestyle="--", linewidth=1)
    exists = ~np.isnan(values)
    title = f"{int((values > threshold).sum())} of {int(exists.sum())} images above {threshold:.2f}"
    axes.set(
        xlabel="test image",
        ylabel=r"Pareto $\hat{k}$",
        title=title if exists.any() else "k-hat does not exist",
    )
    return figure


def calibration(ranks: np.ndarray, num_samples: int) -> Figure:
    """Plot the difference between the ECDF of ranks and the uniform distribution, with ArviZ's simultaneous band.

    Args:
        ranks: Ranks among `num_samples` samples, shape (N, units). If there are more than six units, the six that
            deviate most from uniform are shown.
        num_samples: Number of samples from the guide among which a latent is ranked.
    """
    import arviz  # imported on use: both imports are slow
    import scipy.stats

    scaled = (ranks + 0.5) / (num_samples + 1)
    grid = (np.arange(len(scaled)) + 0.5)[:, None] / len(scaled)
    least_uniform = np.abs(np.sort(scaled, axis=0) - grid).max(0).argsort()[::-1][:_CALIBRATED_UNITS]
    units = np.sort(least_uniform)
    if is_arviz_1():
        arviz_1: Any = arviz
        groups = {"prior_sbc": {"z": scaled[None, :, units]}}
        data = arviz_1.from_dict(groups, dims={"z": ["unit"]}, coords={"unit": units})
        return arviz_1.plot_ecdf_pit(data, backend="matplotlib").viz["figure"].item()
    figure = new_figure(9, 2.8 * -(-len(units) // 3))
    panels = figure.subplots(-(-len(units) // 3), 3, squeeze=False).flatten()
    for panel in panels[len(units) :]:
        panel.axis("off")
    uniform = scipy.stats.uniform()
    band = {"cdf": uniform.cdf, "rvs": uniform.rvs, "random_state": np.random.default_rng(0)}
    for panel, unit in zip(panels, units, strict=False):
        points = np.linspace(0, 1, 101)
        arviz.plot_ecdf(scaled[:, unit], eval_points=points, difference=True, confidence_bands=True, ax=panel, **band)
        panel.set(title=f"unit {unit}", xlabel="rank / samples", ylabel="ECDF - uniform")
    return figure


def rate_distortion(summaries: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Plot the rate and distortion of runs. Dashed lines have constant ELBO = -(rate + distortion).

    Alemi et al., "Fixing a Broken ELBO", ICML 2018 (https://arxiv.org/abs/1711.00464).

    Args:
        summaries: Content of summary.json by the name of the run, values in nats per image.
    """
    figure = new_figure(6, 5)
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
    axes.set(xlabel="distortion -log p(x|z), nats per image", ylabel="rate, nats per image")
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def intervals(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Plot how far each row of a comparison is below the best, with two standard errors of the paired difference."""
    figure = new_figure(7, 1 + 0.45 * len(rows))
    axes = figure.subplots()
    positions = np.arange(len(rows))[::-1]
    below = [-row["below_best"] for row in rows]
    axes.errorbar(below, positions, xerr=[2 * row["below_best_se"] for row in rows], fmt="o", capsize=3)
    axes.axvline(0, color="0.7", linewidth=1, zorder=0)
    axes.set_yticks(positions, [f"{figure_label(row['name'])}  {row['log_likelihood']:.2f}" for row in rows])
    axes.set(xlabel="log p(x) relative to the best, nats per image (2 s.e., paired over images)")
    return figure


def probe(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Plot accuracy over the number of labels, with a panel per classifier and a line per kind of features.

    Args:
        rows: Rows of `evaluate.Accuracy` as mappings.
    """
    kinds = list(dict.fromkeys(row["features"] for row in rows))
    classifiers = list(dict.fromkeys(row["classifier"] for row in rows))
    figure = new_figure(4 * len(classifiers), 4)
    panels = figure.subplots(1, len(classifiers), sharey=True, squeeze=False)[0]
    for axes, classifier in zip(panels, classifiers, strict=True):
        panel_rows = [row for row in rows if row["classifier"] == classifier]
        for index, features in enumerate(dict.fromkeys(row["features"] for row in panel_rows)):
            points = [
                (row["labels"], row["accuracy"], row["se"] or 0.0) for row in panel_rows if row["features"] == features
            ]
            labels, means, errors = np.array(points).T
            style: dict[str, Any] = {"color": f"C{kinds.index(features)}", "marker": "o", "markersize": 4, "capsize": 2}
            axes.errorbar(labels * 1.06**index, means, errors, label=features, **style)  # offset, as in `bounds`
        axes.set(xscale="log", xlabel="labels", title=classifier)
        axes.legend(loc="lower right")
    panels[0].set(ylabel="accuracy on test images (1 s.e.)")
    return figure
