"""Figures look the same whatever the settings of matplotlib are, are named after their run, and have any format."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from helpers.oracles import LinearGaussian
from matplotlib.figure import Figure
from PIL import Image

from pyro_vae.errors import FigureError
from pyro_vae.evaluate import Scores, score
from pyro_vae.report import curves, images, latents, rates
from pyro_vae.report.drawing import FIGURE_FORMATS, FigureFormat, new_figure
from pyro_vae.report.rows import distributions
from pyro_vae.runs import Folder, raise_if_undrawn

HOSTILE = {
    "text.usetex": True,
    "font.size": 30,
    "font.family": "no such font",
    "axes.prop_cycle": mpl.cycler(color=["yellow"]),
    "axes.facecolor": "black",
    "figure.facecolor": "red",
    "figure.dpi": 30,
    "figure.constrained_layout.use": True,
    "image.cmap": "jet",
    "image.interpolation": "bicubic",
    "image.origin": "lower",
    "lines.linewidth": 20,
    "legend.loc": "center",
    "savefig.dpi": 10,
    "savefig.format": "jpg",
    "savefig.bbox": "tight",
    "savefig.transparent": True,
    "svg.fonttype": "none",
    "pdf.fonttype": 3,
    "hatch.color": "pink",
    "xtick.direction": "in",
}


@pytest.fixture
def scores() -> Scores:
    program = LinearGaussian(2, variance_ratio=1.5)
    return score(program.model, program.guide, program.simulate(10), 50, seed=0)


def draw_all(folder: Folder, scores: Scores) -> None:
    """Draw figures of every kind."""
    x = torch.rand(6, 4, 4, generator=torch.Generator().manual_seed(0))
    missing = x.clone()
    missing[:, 2:] = torch.nan
    codes = x.flatten(1)[:, :2].cpu().numpy()
    kinds: dict[str, Callable[[], Figure]] = {
        "bounds": lambda: curves.bounds({"a": scores, "b": scores}),
        "khat": lambda: curves.khat(scores.khat, 50),
        "rates": lambda: rates.rate_distortion({"a": scores}),
        "codes": lambda: latents.scatter(codes, np.arange(6) % 2),
        "rows": lambda: images.labeled_rows({"first": x, "second": missing}, "title"),
        "plane": lambda: latents.plane(x.unflatten(0, (2, 3)), [0, 1, 2], [1, 0], "title"),
        "table": lambda: distributions(x[:, 0], x[:, 1], list("abcd"), "title"),
    }
    for name, kind in kinds.items():
        with folder.drawing(name):
            folder.save_figure(name, kind())
    assert not folder.undrawn, folder.undrawn


@pytest.mark.parametrize("figure_format", FIGURE_FORMATS)
def test_settings_of_matplotlib_change_no_byte_and_are_unchanged(
    figure_format: FigureFormat, scores: Scores, tmp_path: Path
) -> None:
    folders = [Folder(tmp_path / name, title="a run") for name in ("usual", "hostile")]
    for folder, settings in zip(folders, ({}, HOSTILE), strict=True):
        folder.figure_format = figure_format
        with mpl.rc_context(settings):
            before = dict(mpl.rcParams)
            draw_all(folder, scores)
            assert dict(mpl.rcParams) == before
    usual, hostile = ({p.name: p.read_bytes() for p in folder.figures.iterdir()} for folder in folders)
    assert len(usual) == 7
    assert usual == hostile


HEADERS = {"png": b"\x89PNG\r\n", "pdf": b"%PDF-", "svg": b"<?xml"}


def test_figures_replace_those_of_another_format(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for figure_format in (*FIGURE_FORMATS, "png"):
        folder.figure_format = figure_format
        with folder.drawing("one"):
            folder.save_figure("one", curves.khat(np.linspace(0, 1, 9), 50))
        (written,) = folder.figures.iterdir()
        assert written.name == f"one.{figure_format}"
        assert written.read_bytes().startswith(HEADERS[figure_format])
    with folder.drawing("two"):
        folder.save_figure("two", new_figure(4, 3))
    folder.clear()
    assert list(folder.figures.iterdir()) == []


def test_error_names_the_file_in_its_format(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.figure_format = "svg"
    with folder.drawing("one"):
        raise ZeroDivisionError
    with pytest.raises(FigureError, match=re.escape(str(folder.figures / "one.svg"))):
        raise_if_undrawn(folder)


@pytest.mark.parametrize("name", ["W" * 100, "a$\\frac{\nb"])
def test_name_of_the_run_is_above_every_figure_and_not_cut_off(name: str, scores: Scores, tmp_path: Path) -> None:
    """Its ink is in the first rows of pixels; none is in the first and the last column."""
    folder = Folder(tmp_path, title=name)
    draw_all(folder, scores)
    for path in folder.figures.iterdir():
        dark = np.asarray(Image.open(path).convert("L")) < 128
        assert dark[:30].any(), path
        assert not dark[:30, [0, -1]].any(), path
    folder.figure_format = "svg"
    with folder.drawing("khat"):
        folder.save_figure("khat", curves.khat(scores.khat, 50))
    assert f"<!-- {name[-40:]} -->".replace("\n", "\\n") in (folder.figures / "khat.svg").read_text()


def test_legend_below_covers_no_point(scores: Scores) -> None:
    runs = {f"a run with the number {number}": scores for number in range(12)}
    for figure in (curves.bounds(runs), rates.rate_distortion(runs), rates.rate_distortion({"one": scores})):
        figure.draw_without_rendering()
        box, panel = figure.legends[0].get_window_extent(), figure.axes[0].get_tightbbox()
        assert 0 <= box.y0 < box.y1 <= panel.y0
        assert panel.height > 0.5 * 3 * figure.dpi  # the legend takes no room from the panel


def rendered(figure: Figure, path: Path) -> np.ndarray:
    figure.savefig(path, dpi=130)
    return np.asarray(Image.open(path).convert("L")) / 255


def test_large_images_are_reduced_without_aliasing(tmp_path: Path) -> None:
    """A board of single black and white pixels is gray at any smaller size; nearest neighbors would be a pattern."""
    board = (torch.arange(1500)[:, None] + torch.arange(1500)) % 2
    shown = rendered(images.image_grid(board[None].float(), "title"), tmp_path / "large.png")
    inner = shown[300:600, 300:600]
    assert np.abs(inner - 0.5).max() < 0.1


def test_small_images_are_enlarged_by_nearest_neighbor(tmp_path: Path) -> None:
    """Of two gray levels, no other appears between the borders."""
    x = torch.where(torch.rand(1, 8, 8) < 0.5, 0.2, 0.8)
    shown = rendered(images.image_grid(x, "title"), tmp_path / "small.png")
    inner = (255 * shown[300:600, 200:600]).round()
    assert set(np.unique(inner)) == {51, 204}


@pytest.mark.parametrize("channels", [(), (3,)])
def test_missing_pixels_are_hatched(channels: tuple[int, ...], tmp_path: Path) -> None:
    """Unlike gray pixels and the gray border, they contain white and dark; the others are as given."""
    x = torch.full((1, *channels, 8, 8), 0.25)
    x[..., 4:, :] = torch.nan
    shown = rendered(images.labeled_rows({"one": x}, "title"), tmp_path / "missing.png")
    column = shown[:, shown.shape[1] // 2 - 60 : shown.shape[1] // 2 + 60]
    gray = (np.abs(column - 64 / 255) < 0.01).all(1)
    upper = np.flatnonzero(gray)
    lower = column[upper[-1] + 40 : upper[-1] + len(upper) - 40]
    assert len(upper) > 200
    assert lower.max() == 1
    assert lower.min() < 0.5
