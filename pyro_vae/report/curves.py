r"""Curves and scatter plots. Every function returns a matplotlib figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_vae.evaluate import Scores, khat_threshold
from pyro_vae.evaluate.likelihood.diagnostics import is_arviz_1
from pyro_vae.report.drawing import legend_below, new_figure
from pyro_vae.report.labels import figure_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BELOW_BAR = 0.25  # distance of the dots of single seeds from their mean, in rows
_CALIBRATED_UNITS = 6  # maximum number of panels in a calibration plot


def learning_curve(metrics: Sequence[Mapping[str, Any]]) -> Figure:
    """Plot the training and validation ELBO over epochs, and the objective if it differs from the ELBO.

    Args:
        metrics: Epochs of a run as in metrics.jsonl, values in nats per image. None is shown as a gap.
    """
    from matplotlib.ticker import MaxNLocator  # imported on use, see `drawing.style`

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
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="epoch", ylabel="nats per image", title="learning curve")
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
        xlabel="number of samples K",
        ylabel=r"IWAE$_K$, nats per image",
        title="bars: 1 s.e. over images, correlated along each curve; dashed: log p(x)",
    )
    legend_below(figure)
    return figure


def khat(values: np.ndarray, num_samples: int) -> Figure:
    """Plot the k-hat of each image, shape (N,), in increasing order, with the threshold for `num_samples` samples.

    An infinite k-hat is a triangle at the upper edge; one that does not exist, NaN, is omitted.
    """
    figure = new_figure(6, 4)
    axes = figure.subplots()
    threshold = khat_threshold(num_samples)
    ordered = np.sort(values[~np.isnan(values)])
    places, finite = np.arange(1, len(ordered) + 1), np.isfinite(ordered)
    colors = np.where(ordered > threshold, "C3", "C0")
    axes.scatter(places[finite], ordered[finite], s=8, c=colors[finite])
    edge = axes.get_xaxis_transform()
    axes.plot(places[~finite], np.ones((~finite).sum()), "C3^", markersize=4, transform=edge, clip_on=False)
    axes.axhline(threshold, color="C3", linestyle="--", linewidth=1)
    title = f"{int((ordered > threshold).sum())} of {len(ordered)} images above {threshold:.2f}"
    axes.set(
        xlabel="test images in order of k-hat",
        ylabel=r"Pareto $\hat{k}$",
        title=f"{title}, where estimates of log p(x) are unreliable" if len(ordered) else "k-hat does not exist",
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
    figure = new_figure(9, 2.8 * -(-len(units) // 3) + 0.3)
    figure.suptitle("ranks of latents of simulated images; shaded: simultaneous band if they are uniform")
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


def intervals(rows: Sequence[Mapping[str, Any]], by_seed: Mapping[str, Sequence[float]]) -> Figure:
    """Plot how far each row of a comparison is below the best, with two standard errors of the paired difference.

    Args:
        rows: Rows of a comparison, best first.
        by_seed: Mean log p(x) of each seed by the name of the row, in nats per image. Several seeds are shown as dots.
    """
    figure = new_figure(7, 1.2 + 0.45 * len(rows))
    axes = figure.subplots()
    positions = np.arange(len(rows))[::-1]
    below = [-row["below_best"] for row in rows]
    axes.errorbar(below, positions, xerr=[2 * row["below_best_se"] for row in rows], fmt="o", capsize=3)
    axes.axvline(0, color="0.7", linewidth=1, zorder=0)
    axes.set_yticks(positions, [f"{figure_label(row['name'])}  {row['log_likelihood']:.2f}" for row in rows])
    title = "log p(x) of test images; bars: 2 s.e. of the difference, paired over images"
    if any(len(seeds) > 1 for seeds in by_seed.values()):
        title += "; dots: single seeds"
        for row, position in zip(rows, positions, strict=True):
            values = np.array(by_seed[row["name"]]) - rows[0]["log_likelihood"]
            axes.scatter(values, np.full(len(values), position - _BELOW_BAR), s=10, color="C1")
    axes.set(xlabel="log p(x) relative to the best, nats per image", title=title)
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
        axes.legend()
    panels[0].set(ylabel="accuracy on test images (1 s.e.)")
    return figure
