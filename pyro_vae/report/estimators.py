r"""The figure of estimators of log p(x): accuracy against cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pyro_vae.report.drawing import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKERS = tuple("ov^spD*PXh<>d8")  # of the families of estimators, in turn


def accuracy_and_cost(rows: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Plot the mean difference of each estimator from the last one over its density evaluations.

    Estimators of one family share a marker, and are labeled by their number of samples or temperatures. Error bars are
    paired standard errors over images. The color is the share of images whose k-hat is above 0.7, gray if the
    estimator has no k-hat.

    Args:
        rows: {"family, number": numbers as in summary.json}.
    """
    from matplotlib.cm import ScalarMappable  # imported on use, as in `new_figure`
    from matplotlib.colors import Normalize

    figure = new_figure(8, 5)
    axes = figure.subplots()
    scale = ScalarMappable(Normalize(0, 1), "RdYlGn_r")
    *others, (last, _) = rows.items()
    families = list(dict.fromkeys(name.rpartition(", ")[0] for name, row in others if row["difference"] is not None))
    for name, row in others:
        if row["difference"] is None:
            continue
        place, share = (row["density_evaluations"], row["difference"]), row["khat_bad_fraction"]
        family, _, number = name.rpartition(", ")
        index = families.index(family)
        color = "0.7" if share is None else scale.to_rgba(share)
        axes.errorbar(*place, row["difference_se"] or 0, color="0.5", capsize=2, zorder=1)
        axes.plot(*place, _MARKERS[index % len(_MARKERS)], color=color, markersize=9, markeredgecolor="0.2", zorder=2)
        offset = (0, 9 if index % 2 else -15)  # neighbors of another family have their labels on the other side
        axes.annotate(number, place, offset, textcoords="offset points", ha="center", fontsize=7)
    for index, family in enumerate(families):
        axes.plot([], [], _MARKERS[index % len(_MARKERS)], color="0.8", markeredgecolor="0.2", label=family)
    axes.axhline(0, color="0.3", linewidth=1, zorder=0)
    axes.set(xscale="log", xlabel="density evaluations per image", ylabel=f"log p(x) minus that of {last} (nats)")
    axes.set_title("estimators of log p(x); bars: 1 s.e. of the difference, paired over images")
    axes.margins(x=0.1, y=0.12)
    axes.legend()
    figure.colorbar(scale, ax=axes, label="share of images with k-hat > 0.7")
    return figure
