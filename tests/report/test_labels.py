"""Run folders with arbitrary names: tables keep their lines, figures are drawn, no control characters are printed."""

from __future__ import annotations

import csv
import io
import json
import math
import runpy
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.calls import TINY, command
from helpers.oracles import LinearGaussian
from matplotlib.figure import Figure

from pyro_vae.evaluate import Scores, score
from pyro_vae.instruments import comparison
from pyro_vae.instruments.scores_table import scores_table
from pyro_vae.report import curves, images, rates
from pyro_vae.report.labels import figure_label
from pyro_vae.runs import Folder, RunFolder
from pyro_vae.runs.netcdf import to_netcdf
from pyro_vae.text import printable

# Name of a folder: text shown in tables.
NAMES = {
    "two\nlines": r"two\nlines",
    "back\rover": r"back\rover",
    "a\tb": r"a\tb",
    "\x1b[2J\x1b[31mred": r"\x1b[2J\x1b[31mred",
    "bell\x07\x7f": r"bell\x07\x7f",
    "\x9b31m": r"\x9b31m",  # the C1 form of the same escape sequence
    "next\x85line\u2028and\u2029paragraph": r"next\x85line\u2028and\u2029paragraph",
    "\u202egnp.exe\u200f": r"\u202egnp.exe\u200f",
    "no\u200bthing\ufeff": r"no\u200bthing\ufeff",
    "latin-\udce9": r"latin-\udce9",
    "a$\\frac{": "a$\\frac{",
    "$\\frac{$": "$\\frac{$",
    "\\$a$": "\\$a$",
    "_hidden": "_hidden",
    "100%s %(name)s {name} {0}": "100%s %(name)s {name} {0}",
    "é-Жω": "é-Жω",
    "日本語-😀": "日本語-😀",
    "a,b;\"c\"'d'": "a,b;\"c\"'d'",
    "n" * 255: "n" * 255,
    " ": " ",
    "-rf": "-rf",
    "<b>&amp;": "<b>&amp;",
}


@pytest.fixture
def scores() -> Scores:
    program = LinearGaussian(2, variance_ratio=1.5)
    return score(program.model, program.guide, program.simulate(10), 10, seed=0)


NUMBERS = {
    "elbo": -9.0,
    "iwae": {"5": -8.5, "50": -8.1},
    "log_likelihood": -8.0,
    "log_likelihood_se": 0.1,
    "psis": -8.0,
    "jvi2": -8.0,
    "rate": 4.0,
    "distortion": 5.0,
    "test_images": "digest",
}


def draw(figure: Figure) -> None:
    """Render the figure; warnings are errors here."""
    figure.savefig(io.BytesIO(), dpi=20)


def test_printable_returns_one_line_of_printable_characters() -> None:
    for name, expected in NAMES.items():
        assert printable(name) == expected
        assert printable(name).isprintable()
    plane = "".join(map(chr, range(0x1_0000)))  # contains every control and format character except the tags
    assert printable(plane).isprintable()


def test_table_has_a_line_for_each_name(scores: Scores, promised: Callable[[str], None]) -> None:
    text = scores_table(dict.fromkeys(NAMES, NUMBERS), dict.fromkeys(NAMES, scores))
    lines = text.splitlines()
    assert len(lines) == 1 + len(NAMES) + 1
    for expected, line in zip(NAMES.values(), lines[1:], strict=False):
        assert line.isprintable()
        assert line[:24] == f"{expected[-23:]:24}"
        assert line[24:34] == "     -9.00"
    promised(f"{len(NAMES)} of {len(NAMES)} hostile run names are shown on one line")


def test_nats_of_densities_and_probabilities_are_distinguished(scores: Scores) -> None:
    """8 pixels of 8 bits each: a density costs 8 bits minus 8 nats / (8 log 2), a probability only the latter."""
    coded = 8 / (8 * math.log(2))
    levels = {**NUMBERS, "density": False, "bits_per_dim": coded}
    dense = {**NUMBERS, "density": True, "log_likelihood": 8.0, "bits_per_dim": 8 - coded}
    both = scores_table({"levels": levels, "dense": dense}, {"levels": scores, "dense": scores})
    head, *rows = both.splitlines()
    end = head.index("bits/dim") + len("bits/dim")
    assert [float(row[:end].split()[-1]) for row in rows[:2]] == [1.443, 6.557]
    assert rows[-1].startswith("dense: nats of a density, not comparable")
    others = scores_table({"one": levels, "two": {**levels, "test_images": "other"}}, {"one": scores, "two": scores})
    assert others.splitlines()[-1].startswith("two: other test images, so that nats are not comparable")
    assert "other test images" not in both
    for alone in (levels, dense):
        assert "not comparable" not in scores_table({"alone": alone}, {"alone": scores})
    assert "bits/dim" not in scores_table({"table": {**dense, "bits_per_dim": None}}, {"table": scores})


def legend(figure: Figure) -> list[str]:
    """Return the texts of the legend as drawn, without math mode."""
    texts = [text._preprocess_math(text.get_text()) for text in figure.legends[0].get_texts()]
    assert not any(mathematics for _, mathematics in texts)
    return [text for text, _ in texts]


@pytest.mark.parametrize("name", NAMES)
def test_figures_show_every_name(name: str, scores: Scores) -> None:
    both = curves.bounds({name: scores, "other": scores})
    points = rates.rate_distortion({name: scores, "other": replace(scores, rate=scores.rate + 1)})
    for figure in (both, points):
        draw(figure)
        first, other = legend(figure)
        words = NAMES[name].replace("日本語", r"\u65e5\u672c\u8a9e")[-40:]  # which the font lacks
        assert first.removeprefix(" " if words.startswith("_") else "").startswith(f"{words}: ELBO -")
        assert other.startswith("other: ELBO")


def test_labels_use_only_characters_of_the_font() -> None:
    assert figure_label("日本語-é") == r"\u65e5\u672c\u8a9e-é"
    assert figure_label("run/a_b") == "run/a_b"


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, list[RunFolder]]:
    """Return a run in a folder of each name, with the files that a comparison reads."""
    made: dict[str, list[RunFolder]] = {}
    picture = tmp_path / "picture.png"
    images.image_grid(torch.rand(4, 3, 3), "samples").savefig(picture, dpi=20)
    rng = np.random.default_rng(0)
    for name in NAMES:
        folder = RunFolder(tmp_path / "runs" / name)
        (folder.path / "figures").mkdir(parents=True)
        shutil.copyfile(picture, folder.path / "figures" / "prior_samples.png")
        of_parts: dict[str, Any] = {
            "density": False,
            "num_test_images": 20,
            "bits_per_dim": None,
            "active_units": 3,
            "parameters": 7,
            "config": {},
            "reasons": {},
            "squared_error": None,
            "num_samples": 50,
        }
        of_time = {"khat_bad_fraction": 0.0, "train_seconds": 3.0, "epochs": 3}
        folder.write_json("summary.json", {**NUMBERS, **of_parts, **of_time})
        values = rng.normal(-8, 1, 20)
        content = to_netcdf({"log_likelihood": values - values.mean() + NUMBERS["log_likelihood"]})
        (folder.path / "scores.nc").write_bytes(content)
        made[name] = [folder]
    return made


def test_comparison_has_a_line_for_each_name(runs: dict[str, list[RunFolder]], tmp_path: Path) -> None:
    rows = comparison.compare(runs)
    assert {row["name"] for row in rows} == NAMES.keys()
    lines = comparison.comparison_table(rows).splitlines()
    assert len(lines) == 1 + len(NAMES) + 1
    for row, line in zip(rows, lines[1:], strict=False):
        assert line.isprintable()
        assert line.startswith(f"{NAMES[row['name']][-40:]:42}")
        assert f"{row['log_likelihood']:.2f} +- " in line[42:58]
    results = Folder(tmp_path, figures=".")
    comparison.write_comparison(results, rows)
    comparison.draw_comparison(results, rows, runs)
    assert not results.undrawn
    text = (tmp_path / "comparison.csv").read_text(encoding="utf-8")
    assert len(text.splitlines()) == 1 + len(NAMES)
    assert [row["name"] for row in csv.DictReader(io.StringIO(text))] == [NAMES[row["name"]] for row in rows]
    # JSON escapes all characters, so that the names are kept unchanged.
    content = (tmp_path / "comparison.json").read_text()
    assert content.replace("\n", "").isprintable()
    assert [row["name"] for row in json.loads(content)] == [row["name"] for row in rows]


def test_evaluate_accepts_runs_of_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(name: str, *arguments: object) -> str:
        call = command(name, *arguments)
        monkeypatch.setattr(sys, "argv", call[1:])
        runpy.run_path(call[1], run_name="__main__")
        return capsys.readouterr().out

    run("fit", *TINY, "--epochs", 1, "--num-samples", 10, "--out", tmp_path / "run")
    folders = [tmp_path / name for name in ("\x1b[2J\ntwo", "\u202e_a$\\frac{$" + "n" * 230)]
    for folder in folders:
        shutil.copytree(tmp_path / "run", folder)
    lines = run("evaluate", *folders, "--test-images", 2, "--num-samples", 10).splitlines()
    assert len(lines) == 1 + len(folders) + 2  # below the table a line on units, and one on proposals
    assert all(line.isprintable() for line in lines)
    for folder in folders:
        assert (folder / "evaluation" / "figures" / "bounds.png").stat().st_size > 5000
