"""Figures show the numbers that they are given."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from helpers.oracles import LinearGaussian

from pyro_vae.evaluate import Scores, score
from pyro_vae.report import curves, rates
from pyro_vae.report.images import image_grid, reconstructions


def test_bounds_show_every_point_with_its_error_bar() -> None:
    programs = {ratio: LinearGaussian(2, variance_ratio=ratio) for ratio in (1.5, 2.0)}
    x = programs[1.5].simulate(20)
    runs = {str(r): score(p.model, p.guide, x, 100, seed=0) for r, p in programs.items()}
    axes = curves.bounds(runs).axes[0]
    for container, scores in zip(axes.containers, runs.values(), strict=True):
        line, _, (bars,) = container.lines
        np.testing.assert_allclose(line.get_ydata(), scores.iwae.mean(1))
        heights = [np.ptp(segment[:, 1]) / 2 for segment in bars.get_segments()]
        np.testing.assert_allclose(heights, scores.iwae.std(1, ddof=1) / math.sqrt(20))
    texts = " ".join(axes.get_legend_handles_labels()[1])
    for scores in runs.values():
        assert f"ELBO {scores.elbo.mean():.2f}, log p(x) {scores.log_likelihood.mean():.2f}" in texts


def test_bounds_of_a_loss_are_marked_as_missing() -> None:
    """Alone, and next to a run with bounds."""
    program = LinearGaussian(2)
    x = program.simulate(20)
    some = score(program.model, program.guide, x, 100, seed=0)
    columns = vars(some)
    none = Scores(
        **{name: np.full_like(v, np.nan) if np.ndim(v) else v for name, v in columns.items()} | {"reason": "?"}
    )
    for runs in ({"none": none}, {"none": none, "some": some}):
        figure = curves.bounds(runs)
        figure.canvas.draw()
        texts = [text.get_text() for text in figure.legends[0].get_texts()]
        assert texts[0] == "none: no log weights"
        assert ["nan" in text for text in texts] == [False] * len(runs)


def test_learning_curve_shows_measurements_and_gaps() -> None:
    lines = [{"epoch": e, "elbo": -10.0 + e, "objective": -9.0 + e, "valid_elbo": None} for e in range(5)]
    axes = curves.learning_curve(lines).axes[0]
    drawn = {line.get_label(): line for line in axes.lines}
    np.testing.assert_array_equal(drawn["training ELBO"].get_xdata(), [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(drawn["training ELBO"].get_ydata(), [-10, -9, -8, -7, -6])
    np.testing.assert_array_equal(drawn["training objective"].get_ydata(), [-9, -8, -7, -6, -5])
    assert np.isnan(drawn["validation ELBO"].get_ydata()).all()


def test_khat_title_counts_images_above_the_threshold() -> None:
    axes = curves.khat(np.array([0.1, 0.9, np.nan, np.inf]), 1000).axes[0]
    assert axes.get_title().startswith("2 of 3 images above 0.67")
    assert axes.lines[-1].get_ydata()[0] == 1 - 1 / 3
    assert curves.khat(np.full(3, np.nan), 10).axes[0].get_title() == "k-hat does not exist"


def test_khat_is_shown_in_increasing_order() -> None:
    """Of infinite ones, the place in that order."""
    values = np.random.default_rng(0).normal(0.5, 0.3, 50)
    values[[3, 9]], values[20] = np.inf, np.nan
    axes = curves.khat(values, 1000).axes[0]
    finite = np.sort(values[np.isfinite(values)])
    np.testing.assert_array_equal(axes.collections[0].get_offsets(), np.stack([np.arange(1, 48), finite], 1))
    red = axes.collections[0].get_facecolors()[:, 0] > 0.5
    np.testing.assert_array_equal(red, finite > 1 - 1 / 3)
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), [48, 49])


def test_intervals_show_single_seeds_around_their_mean() -> None:
    rows = [
        {"name": "a", "log_likelihood": -90.0, "below_best": 0.0, "below_best_se": 0.0},
        {"name": "b", "log_likelihood": -92.0, "below_best": 2.0, "below_best_se": 0.3},
    ]
    by_seed = {"b": [-91.0, -93.0], "a": [-90.5, -89.5]}
    axes = curves.intervals(rows, by_seed).axes[0]
    means, dots = axes.containers[0].lines[0], axes.collections[-2:]
    for (mean, height), points, name in zip(means.get_xydata(), dots, "ab", strict=True):
        np.testing.assert_array_equal(points.get_offsets()[:, 0], np.array(by_seed[name]) + 90)
        assert set(points.get_offsets()[:, 1]) == {height - 0.25}
        assert points.get_offsets()[:, 0].mean() == mean
    assert "single seeds" in axes.get_title()
    alone = curves.intervals(rows, {"a": [-90.0], "b": [-92.0]}).axes[0]
    assert len(alone.collections) == len(axes.collections) - 2
    assert "seeds" not in alone.get_title()


def test_grids_show_images_in_order() -> None:
    images = torch.rand(20, 3, 3)
    shown = np.asarray(image_grid(images, "title").axes[0].images[0].get_array())
    np.testing.assert_allclose(shown[1:4, 5:8], images[1].numpy(), rtol=1e-6)
    np.testing.assert_allclose(shown[5:8, 1:4], images[10].numpy(), rtol=1e-6)
    means = torch.rand(20, 3, 3)
    axes = reconstructions(images, means, "means of p(x|z)").axes[0]
    assert "means of p(x|z)" in axes.get_title()
    shown = np.asarray(axes.images[0].get_array())
    np.testing.assert_allclose(shown[5:8, 1:4], means[0].numpy(), rtol=1e-6)
    np.testing.assert_allclose(shown[9:12, 1:4], images[10].numpy(), rtol=1e-6)


def test_calibration_draws_the_most_deviating_units() -> None:
    """Of eight units the second always has low ranks: it is drawn, with five others."""
    ranks = np.random.default_rng(0).integers(0, 100, (300, 8))
    ranks[:, 1] //= 3
    figure = curves.calibration(ranks, 99)
    titles = [axes.get_title() for axes in figure.axes]
    assert any(title.split()[-1] == "1" for title in titles if title)
    assert sum(bool(title) for title in titles) == 6


def test_rate_and_distortion_are_on_the_line_of_their_elbo() -> None:
    program = LinearGaussian(2, variance_ratio=1.5)
    some = score(program.model, program.guide, program.simulate(2), 10, seed=0)
    ones = np.array([-1.0, 1.0])
    runs = {
        "a": replace(some, rate=20 + ones, distortion=70 + 3 * ones, elbo=-90 - 4 * ones),
        "b": replace(some, rate=10 + ones, distortion=85 + 3 * ones, elbo=-95 - 4 * ones),
    }
    figure = rates.rate_distortion(runs)
    points = np.concatenate([collection.get_offsets() for collection in figure.axes[0].collections])
    np.testing.assert_array_equal(points, [[10, 85], [20, 70]])  # sorted by rate
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_xydata(), points)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["b: ELBO -95.00", "a: ELBO -90.00"]
    alone = rates.rate_distortion({"a": runs["a"]}).axes[0].collections
    np.testing.assert_array_equal(alone[0].get_offsets(), [[19, 67], [21, 73]])  # its images
    np.testing.assert_array_equal(alone[1].get_offsets(), [[20, 70]])


def test_annealed_curve_and_its_line_of_constant_log_p() -> None:
    rate, distortion = np.array([0.0, 10.0, 20.0]), np.array([200.0, 90.0, 75.0])
    axes = rates.annealed_rate_distortion(rate, distortion).axes[0]
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), np.stack([distortion, rate], 1))
    assert axes.get_legend().get_texts()[0].get_text() == "log p(x) = -95.00"


def test_probe_shows_every_point_with_its_error_bar() -> None:
    rows = [
        {"features": features, "classifier": classifier, "labels": labels, "accuracy": labels / 2000, "se": error}
        for features, classifier in (("pixels", "kNN"), ("means", "kNN"), ("encoder", "fine-tuned"))
        for labels, error in ((10, 0.02), (100, 0.03), (1285, None))
    ]
    panels = curves.probe(rows).axes
    assert [axes.get_title() for axes in panels] == ["kNN", "fine-tuned"]
    drawn = [container for axes in panels for container in axes.containers]
    assert [container.get_label() for container in drawn] == ["pixels", "means", "encoder"]
    for container in drawn:
        line, _, (bars,) = container.lines
        np.testing.assert_allclose(line.get_xdata(), [10, 100, 1285], rtol=0.1)  # slightly shifted to avoid overlap
        np.testing.assert_allclose(line.get_ydata(), [0.005, 0.05, 0.6425])
        heights = [np.ptp(segment[:, 1]) / 2 for segment in bars.get_segments()]
        np.testing.assert_allclose(heights, [0.02, 0.03, 0], atol=1e-12)
    assert len({container.lines[0].get_color() for container in drawn}) == 3
