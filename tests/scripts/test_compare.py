"""compare.py, with tiny settings: each run with the flags that it reads, and numbers that compare."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.calls import TINY, Inside, inside, script


def test_densities_and_probabilities_of_pixels_are_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", Inside)
    flags = [
        "--likelihoods",
        "gaussian",
        "logistic-mixture",
        "--binarize",
        "none",
        *TINY,
        "--epochs",
        30,
        "--learning-rate",
        0.01,
    ]
    result = inside("compare", *flags, "--out", tmp_path / "out")
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert "gaussian scores densities" in line
    assert "bits_per_dim" in line
    for name in ("gaussian", "logistic-mixture"):  # the runs are there, with the number that does compare
        summary = json.loads((tmp_path / "out" / name / "summary.json").read_text())
        assert 0 < summary["bits_per_dim"] < 8


def test_objectives_are_compared_each_with_the_flags_that_it_reads(run: Path, tmp_path: Path) -> None:
    """In processes of their own; the first has been fitted before, and is what it would be."""
    shutil.copytree(run, tmp_path / "out" / "elbo")
    flags = ["--objectives", "elbo", "beta-tcvae", "--beta", 4, *TINY]
    result = script("compare", *flags, "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    betas = {
        name: json.loads((tmp_path / "out" / name / "config.json").read_text())["beta"]
        for name in ("elbo", "beta-tcvae")
    }
    assert betas == {"elbo": 1.0, "beta-tcvae": 4.0}
