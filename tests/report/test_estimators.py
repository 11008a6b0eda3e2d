"""The figure of estimators: one labeled point each, at its cost and its difference."""

from __future__ import annotations

from matplotlib.lines import Line2D

from pyro_vae.report.estimators import accuracy_and_cost

ROWS = {
    "guide, 1,000": {"difference": -1.5, "difference_se": 0.1, "khat_bad_fraction": 0.9, "density_evaluations": 1000.0},
    "AIS, 100": {"difference": -0.2, "difference_se": None, "khat_bad_fraction": None, "density_evaluations": 2e4},
    "broken": {"difference": None, "difference_se": None, "khat_bad_fraction": None, "density_evaluations": 1e3},
    "AIS, 1,000": {"difference": 0.0, "difference_se": 0.0, "khat_bad_fraction": None, "density_evaluations": 2e5},
}


def points(rows: dict) -> list[Line2D]:
    """Return the markers with a place, without error bars and the legend."""
    lines = accuracy_and_cost(rows).axes[0].lines
    return [line for line in lines if len(line.get_xdata()) == 1 and line.get_markersize() == 9]


def test_points_are_at_their_cost_and_difference() -> None:
    axes = accuracy_and_cost(ROWS).axes[0]
    assert {text.get_text(): text.xy for text in axes.texts} == {"1,000": (1000, -1.5), "100": (2e4, -0.2)}
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["guide", "AIS"]
    assert axes.get_ylabel() == "log p(x) minus that of AIS, 1,000 (nats)"
    assert [(*line.get_xdata(), *line.get_ydata()) for line in points(ROWS)] == [(1000, -1.5), (2e4, -0.2)]


def test_families_have_markers_and_colors_show_the_share_of_bad_images() -> None:
    *_, last = ROWS
    rows = {name: row for name, row in ROWS.items() if name != last}
    rows |= {"guide, 5,000": ROWS["guide, 1,000"] | {"khat_bad_fraction": 0.0}, last: ROWS[last]}
    bad, gray, good = points(rows)
    assert bad.get_marker() == good.get_marker() != gray.get_marker()
    assert bad.get_color()[0] > bad.get_color()[1]
    assert good.get_color()[1] > good.get_color()[0]
    assert gray.get_color() == "0.7"
