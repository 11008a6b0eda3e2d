"""Figures of latent units: marks and ticks are at the values of the units, and the legend covers no codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_vae.instruments import samples
from pyro_vae.report import latents
from pyro_vae.runs import Folder


def test_traversals_mark_the_value_of_the_image_and_name_the_range() -> None:
    """At the first step, between two steps, and beyond the last one."""
    decoded = torch.rand(3, 5, 4, 6)
    base, low, high = torch.tensor([[-1.0, 9.0, 1.0, 7.0], [-1.0, 0.0, 0.0, -2.0], [1.0, 1.0, 4.0, 2.0]])
    axes = latents.traversals({0: "a", 2: "b", 3: "c"}, decoded, base, low, high, "title").axes[0]
    marks = axes.lines[0].get_xydata()
    # A cell has 7 pixels with its border; the centers of the first and the last one are at 3.5 and 31.5.
    np.testing.assert_allclose(marks[:, 0], [3.5, 3.5 + 28 / 4, 35])
    np.testing.assert_allclose(marks[:, 1], [0, 5, 10])  # the borders above the rows
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["a\n-1.00 to 1.00", "b\n0.00 to 4.00", "c\n-2.00 to 2.00"]


class _Kept(Folder):
    """A folder that keeps its figures instead of writing them."""

    def __init__(self) -> None:
        super().__init__("run")
        self.kept: dict[str, object] = {}

    def save_figure(self, name: str, figure: object, title: str = "") -> None:
        self.kept[name] = figure

    def save_animation(self, name: str, frames: object) -> None:
        self.kept[name + " moving"] = frames


@pytest.mark.parametrize(("strength", "shown"), [(1.0, [2, 0]), (0.1, [2])])
def test_units_that_do_nothing_are_not_traversed(strength: float, shown: list[int]) -> None:
    """Unit u sets pixel u of a row of three; the last one only slightly. The first row is shown in any case."""

    def decode(units: Tensor) -> tuple[Tensor, str]:
        scale = torch.tensor([0.6, 0.1, 1.0]) * strength
        return (units * scale).unsqueeze(-2), "means"

    folder, units = _Kept(), torch.tensor([2, 0, 1])
    samples._write_traversals(folder, decode, torch.rand(3, 3), (torch.zeros(3), torch.ones(3)), units)
    axes = folder.kept["traversals"].axes[0]  # type: ignore[attr-defined]
    assert [label.get_text().split()[:2] for label in axes.get_yticklabels()] == [["unit", str(u)] for u in shown]
    assert f"{len(shown)} of 3 units" in axes.get_title()
    last = np.asarray(axes.images[0].get_array())[1, -4:-1]
    expected, _ = decode(torch.tensor([0.0, 0.0, 1.0]))
    assert last[2] == pytest.approx(float(expected[0, 2]), rel=1e-6)


def test_plane_has_the_values_of_its_images_along_the_edges() -> None:
    images = torch.rand(2, 3, 4, 4)
    axes = latents.plane(images, [-1.0, 0.0, 1.5], [0.5, -0.5], "title").axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["-1.0", "0.0", "1.5"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["0.5", "-0.5"]
    shown = np.asarray(axes.images[0].get_array())
    for row, y in enumerate(axes.get_yticks()):
        for column, x in enumerate(axes.get_xticks()):
            place = (slice(round(y - 1.5), round(y + 2.5)), slice(round(x - 1.5), round(x + 2.5)))
            np.testing.assert_allclose(shown[place], images[row, column].cpu().numpy(), rtol=1e-6)


@pytest.mark.parametrize("num_classes", [2, 10, 47])
def test_legend_of_codes_covers_no_point(num_classes: int) -> None:
    rng = np.random.default_rng(0)
    figure = latents.scatter(rng.normal(size=(500, 2)), np.arange(500) % num_classes)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    box = axes.get_legend().get_window_extent()
    for points in axes.collections:
        assert not any(box.contains(*place) for place in axes.transData.transform(points.get_offsets()))
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width
    assert 0 <= box.y0 < box.y1 <= figure.bbox.height
    looks = {(p.get_paths()[0].vertices.tobytes(), p.get_facecolors().tobytes()) for p in axes.collections}
    assert len(looks) == num_classes
