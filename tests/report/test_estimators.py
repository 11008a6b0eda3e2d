"""The figure of estimators: one labeled point each, at its cost and its difference."""

from __future__ import annotations

import pytest

from pyro_vae.report.estimators import accuracy_and_cost

ROWS = {
    "guide, 1,000": {"difference": -1.5, "difference_se": 0.1, "khat_bad_fraction": 0.9, "density_evaluations": 1000.0},
    "AIS, 100": {"difference": -0.2, "difference_se": None, "khat_bad_fraction": None, "density_evaluations": 2e4},
    "broken": {"difference": None, "difference_se": None, "khat_bad_fraction": None, "density_evaluations": 1e3},
    "AIS, 1,000": {"difference": 0.0, "difference_se": 0.0, "khat_bad_fraction": None, "density_evaluations": 2e5},
}


def test_points_are_at_their_cost_and_difference() -> None:
    axes = accuracy_and_cost(ROWS).axes[0]
    places = {text.get_text(): text.xy for text in axes.texts}
    assert places == {"guide, 1,000": (1000, -1.5), "AIS, 100": (2e4, -0.2)}
    assert axes.get_ylabel() == "log p(x) minus that of AIS, 1,000 (nats)"


def test_colors_show_the_share_of_bad_images() -> None:
    rows = ROWS | {"adaptive, 1,000": ROWS["guide, 1,000"] | {"khat_bad_fraction": 0.0}}
    *_, last = rows
    rows["AIS, 1,000"] = rows.pop("AIS, 1,000")
    assert last != "AIS, 1,000"
    markers = [line for line in accuracy_and_cost(rows).axes[0].lines if line.get_marker() not in ("None", "_", "|")]
    red, gray, green = (marker.get_color() for marker in markers if len(marker.get_xdata()) == 1)
    assert red[0] > red[1]
    assert green[1] > green[0]
    assert gray == pytest.approx("0.6")
