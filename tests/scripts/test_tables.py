"""Tables through every script: how they were read is reported in one line; metrics and figures are those of rows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.calls import command, inside

pytestmark = pytest.mark.usefixtures("short_annealing")

FLAGS = ["--epochs", 3, "--num-samples", 20, "--latent-dim", 2, "--hidden-dim", 8, "--batch-size", 20]
LINES = {
    "flowers.csv": " test rows of 4 real numbers, 3 classes, split by their content; --likelihood gaussian",
    "cells.npy": " test rows of 9 counts, split by their content; --likelihood negative-binomial",
}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("tables"), np.random.default_rng(0)
    rows = rng.normal(size=(150, 2)) @ rng.normal(size=(2, 4)) + [5, 3, 4, 1]
    lines = [",".join([*(f"{value:.2f}" for value in row), "abc"[n % 3]]) for n, row in enumerate(rows)]
    (folder / "flowers.csv").write_text("\n".join(["length,width,height,depth,kind", *lines]) + "\n")
    np.save(folder / "cells.npy", rng.negative_binomial(2, 0.1, (200, 9)))
    return folder


@pytest.mark.parametrize("name", LINES)
def test_table_is_fitted_scored_and_drawn(name: str, tables: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = inside("fit", "--data", tables / name, *FLAGS, "--out", run, render=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0].endswith(LINES[name])
    fitted = json.loads((run / "summary.json").read_text())
    assert fitted["elbo"] <= fitted["log_likelihood"]
    if name == "flowers.csv":
        assert fitted["bits_per_dim"] is None
        assert "real-valued data have no levels" in fitted["reasons"]["bits_per_dim"]
    else:
        assert fitted["bits_per_dim"] == pytest.approx(-fitted["log_likelihood"] / (9 * math.log(2)))

    again = inside("evaluate", run, "--proposal", "guide", "--ais-temperatures", 3)
    assert again.returncode == 0, again.stderr
    repeated = json.loads((run / "evaluation" / "summary.json").read_text())
    assert repeated["log_likelihood"] == fitted["log_likelihood"]
    assert repeated["bits_per_dim"] == fitted["bits_per_dim"]
    drawn = inside("sample", run, render=True)
    assert drawn.returncode == 0, drawn.stderr
    figures = (run / "figures" / "prior_samples", run / "figures" / "reconstructions", run / "samples" / "prior")
    for path in figures:
        assert path.with_suffix(".png").stat().st_size > 5000


def test_counts_under_a_density_are_dequantized(tables: Path, tmp_path: Path) -> None:
    """A density of x + u bounds the probability of the counts, in the same bits per dimension."""
    run = tmp_path / "run"
    result = inside("fit", "--data", tables / "cells.npy", "--likelihood", "gaussian", *FLAGS, "--out", run)
    assert result.returncode == 0, result.stderr
    fitted = json.loads((run / "summary.json").read_text())
    assert fitted["density"] is True
    assert fitted["bits_per_dim"] == pytest.approx(-fitted["log_likelihood"] / (9 * math.log(2)))


def test_split_fractions_are_applied_and_kept(tables: Path, tmp_path: Path) -> None:
    """Rows are assigned independently, about half of 150; the run keeps its fractions."""
    run = tmp_path / "run"
    flags = ["--data", tables / "flowers.csv", "--splits", 0.5, 0.3, 0.2, *FLAGS, "--out", run]
    result = inside("fit", *flags)
    assert result.returncode == 0, result.stderr
    sizes = [int(word) for word in result.stdout.replace(",", "").split() if word.isdigit()][:3]
    assert sum(sizes) == 150
    assert abs(sizes[0] - 75) < 30  # 5 standard deviations of a binomial count
    assert json.loads((run / "config.json").read_text())["splits"] == [0.5, 0.3, 0.2]
    assert inside("evaluate", run).returncode == 0
    assert json.loads((run / "evaluation" / "summary.json").read_text())["num_test_images"] == sizes[2]


@pytest.mark.parametrize(
    ("name", "flags", "words"),
    [
        ("flowers.csv", ["--net", "conv"], ["(4,)", "no height and width", "--net mlp"]),
        ("flowers.csv", ["--prior", "vamp"], ["--prior vamp", "images"]),
        ("flowers.csv", ["--binarize", "dynamic"], ["holds numbers, not pixels", "--binarize dynamic"]),
        ("flowers.csv", ["--likelihood", "bernoulli"], ["bernoulli does not support real data"]),
        ("flowers.csv", ["--splits", "0.5", "0.5", "0.5"], ["--splits is 0.5 0.5 0.5", "sum to 1"]),
        ("flowers.csv", ["--image-size", "8"], ["--image-size"]),
    ],
)
def test_unsupported_flags_for_tables_are_rejected(
    name: str, flags: list[str], words: list[str], tables: Path, tmp_path: Path, refused: Callable[..., None]
) -> None:
    refused(command("fit", "--data", tables / name, *FLAGS, *flags, "--out", tmp_path / "run"), *words)
    assert not (tmp_path / "run").exists()
