"""compare.py with tiny settings: each run has the flags that apply to it, and only comparable numbers are compared."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.calls import TINY, PopenInProcess, inside, script

from pyro_vae.errors import UserError
from pyro_vae.instruments import comparison
from pyro_vae.runs import RunFolder


def test_densities_and_probabilities_of_pixels_are_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", PopenInProcess)
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
    for name in ("gaussian", "logistic-mixture"):  # the runs exist, with the number that is comparable
        summary = json.loads((tmp_path / "out" / name / "summary.json").read_text())
        assert 0 < summary["bits_per_dim"] < 8


def test_objectives_are_compared_each_with_its_own_flags(run: Path, tmp_path: Path) -> None:
    """In separate processes; the first run was fitted before with the same result."""
    shutil.copytree(run, tmp_path / "out" / "elbo")
    flags = ["--objectives", "elbo", "beta-tcvae", "--beta", 4, *TINY]
    result = script("compare", *flags, "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    betas = {
        name: json.loads((tmp_path / "out" / name / "config.json").read_text())["beta"]
        for name in ("elbo", "beta-tcvae")
    }
    assert betas == {"elbo": 1.0, "beta-tcvae": 4.0}


def test_single_images_are_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their differences have no standard error."""
    monkeypatch.setattr(comparison, "read_summary", lambda run: {"log_likelihood": -90.0, "num_test_images": 1})
    with pytest.raises(UserError, match="first has one test image"):
        comparison.compare({name: [RunFolder(tmp_path / name)] for name in ("first", "second")})
