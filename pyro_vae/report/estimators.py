r"""The figure of estimators of log p(x): accuracy against cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pyro_vae.report.drawing import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKERS = {"guide": "o", "PSIS": "v", "JVI-2": "^", "local": "s", "laplace": "D", "adaptive": "*"}


def accuracy_and_cost(rows: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Plot the mean difference of each estimator from the last one over its density evaluations.

    Error bars are paired standard errors over images. The color is the share of images whose k-hat is above 0.7, gray
    if the estimator has no k-hat.

    Args:
        rows: {estimator: numbers as in summary.json}.
    """
    from matplotlib.cm import ScalarMappable  # imported on use, as in `new_figure`
    from matplotlib.colors import Normalize

    figure = new_figure(8, 5)
    axes = figure.subplots()
    scale = ScalarMappable(Normalize(0, 1), "RdYlGn_r")
    *others, (last, _) = rows.items()
    for name, row in others:
        if row["difference"] is None:
            continue
        cost, share = row["density_evaluations"], row["khat_bad_fraction"]
        color = "0.6" if share is None else scale.to_rgba(share)
        axes.errorbar(cost, row["difference"], row["difference_se"] or 0, color="0.5", capsize=2, zorder=1)
        marker = _MARKERS.get(name.replace(",", " ").split()[0], "P")
        axes.plot(cost, row["difference"], marker, color=color, markersize=9, markeredgecolor="0.2", zorder=2)
        axes.annotate(name, (cost, row["difference"]), xytext=(7, 5), textcoords="offset points", fontsize=8)
    axes.axhline(0, color="0.3", linewidth=1)
    axes.set(xscale="log", xlabel="density evaluations per image", ylabel=f"log p(x) minus that of {last} (nats)")
    axes.margins(x=0.15, y=0.1)
    figure.colorbar(scale, ax=axes, label="share of images with k-hat > 0.7")
    return figure
