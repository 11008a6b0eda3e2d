"""Custom programs through every script, comparisons, and every name that the flags offer."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import arviz
import numpy as np
import pytest
from helpers.calls import MORE, TINY, PopenInProcess, command, inside

from pyro_vae import config
from pyro_vae.config import programs
from pyro_vae.config.suited import LIKELIHOODS_OF

NAMES = config.CHOICES | {"program": programs.NAMES}
WITHOUT_DENSITY = {
    "autoencoder": "no density",
    "point-mass": "no density",
    "flat": "not a distribution",
    "cross-entropy": "not a log-likelihood",
}
PARTS = ("program", "prior", "posterior", "likelihood", "net", "objective", "schedule")
PROGRAM = """
import pyro
import pyro.distributions as dist
import torch
from torch import nn


class Mine(nn.Module):
    def __init__(self, pixel_shape, mean):
        super().__init__()
        self.pixel_shape = pixel_shape
        pixels = mean.numel()
        self.encoder = nn.Sequential(nn.Flatten(-2), nn.Linear(pixels, 6))
        self.decoder = nn.Linear(3, pixels)
        self.mean = nn.Parameter(mean.clamp(0.01, 0.99).logit())

    def model(self, x):
        pyro.module("mine", self)
        tilt = pyro.param("tilt", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("images", x.shape[0]):
            code = pyro.sample("code", dist.Laplace(torch.zeros(3), tilt).to_event(1))
            logits = self.mean + self.decoder(code).view(*code.shape[:-1], *self.pixel_shape)
            pyro.sample("pixels", dist.Bernoulli(logits=logits).to_event(2), obs=x)

    def guide(self, x):
        with pyro.plate("images", x.shape[0]):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("code", dist.Normal(loc, log_scale.exp()).to_event(1))


def factory(config, images):
    return Mine(images.pixel_shape, images.train.float().mean(0) / 255)


def empty(config, images):
    return object()


def globally(config, images):
    program = factory(config, images)
    inner = program.guide

    def guide(x):
        pyro.sample("theta", dist.Normal(0.0, 1.0))
        inner(x)

    program.guide = guide
    return program
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("programs") / "mine.py"
    path.write_text(PROGRAM)
    return path


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("counts") / "counts.npy"
    np.save(path, np.random.default_rng(0).poisson(3.0, (300, 6)))
    return path


def test_custom_program_is_fitted_and_scored(program: Path, tmp_path: Path, refused: Callable[..., None]) -> None:
    """With its own parameter names, nets and prior, and a constrained `pyro.param`: fit, report and evaluate."""
    folder, mine = tmp_path / "run", ["--program", f"{program}:factory"]
    result = inside("fit", *TINY, *MORE, *mine, "--out", folder)
    assert result.returncode == 0, result.stderr
    fitted = json.loads((folder / "summary.json").read_text())
    assert -27.3 < fitted["elbo"] < fitted["log_likelihood"]  # better than the mean of each pixel
    assert fitted["parameters"] == 64 * 6 + 6 + 3 * 64 + 64 + 64 + 1
    assert (folder / "figures" / "prior_samples.png").exists()

    refused(command("evaluate", folder), "--program")
    again = inside("evaluate", folder, *mine, "--proposal", "guide")
    assert again.returncode == 0, again.stderr
    found = json.loads((folder / "evaluation" / "summary.json").read_text())
    assert found["log_likelihood"] == pytest.approx(fitted["log_likelihood"], rel=1e-6)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.py:factory", ["no readable Python file", "missing.py"]),
        ("mine.py:nothing", ["defines no function 'nothing'"]),
        ("mine.py:empty", ["has no model(x)"]),
        ("mine.py:globally", ["no latent site 'theta'"]),
    ],
)
def test_unusable_program_is_rejected(
    name: str, words: Sequence[str], program: Path, tmp_path: Path, refused: Callable[..., None]
) -> None:
    refused(command("fit", *TINY, "--program", program.with_name(name), "--out", tmp_path / "run"), *words)
    assert not (tmp_path / "run").exists()


def test_compare_fits_pairs_and_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", PopenInProcess)
    out = tmp_path / "priors"
    flags = ["--priors", "standard", "laplace", "--seeds", 2, *TINY, "--out", out]
    result = inside("compare", *flags)
    assert result.returncode == 0, result.stderr
    rows = json.loads((out / "comparison.json").read_text())
    runs = {name: [out / name, out / f"{name}-seed1"] for name in ("standard", "laplace")}
    each = {
        name: np.mean([arviz.from_netcdf(str(r / "scores.nc"))["constant_data"]["log_likelihood"] for r in seeds], 0)
        for name, seeds in runs.items()
    }
    assert rows[0]["log_likelihood"] >= rows[1]["log_likelihood"]
    for row in rows:
        values, below = each[row["name"]], each[rows[0]["name"]] - each[row["name"]]
        assert row["log_likelihood"] == pytest.approx(values.mean())
        assert row["below_best"] == pytest.approx(below.mean(), abs=1e-9)
        assert row["below_best_se"] == pytest.approx(below.std(ddof=1) / len(below) ** 0.5, abs=1e-9)
        summaries = [json.loads((run / "summary.json").read_text()) for run in runs[row["name"]]]
        assert [summary["config"]["seed"] for summary in summaries] == [0, 1]
        assert row["seed_spread"] == pytest.approx(np.std([s["log_likelihood"] for s in summaries], ddof=1))
        assert row["name"] in result.stdout
    assert (out / "comparison.csv").read_text().count("\n") == 3
    assert (out / "comparison.png").exists()
    assert (out / "samples.png").exists()

    # Existing runs are reused: a missing run is fitted, by itself and so up to rounding; the others are unchanged.
    before = {name: (seeds[0] / "summary.json").read_bytes() for name, seeds in runs.items()}
    shutil.rmtree(out / "laplace-seed1")
    assert inside("compare", *flags).returncode == 0
    again = json.loads((out / "comparison.json").read_text())
    assert [row["log_likelihood"] for row in again] == pytest.approx([row["log_likelihood"] for row in rows], rel=1e-6)
    assert before == {name: (seeds[0] / "summary.json").read_bytes() for name, seeds in runs.items()}


def test_loss_is_evaluated_but_neither_compared_nor_annealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., None]
) -> None:
    """The cross-entropy of gray pixels has a rate and a distortion, but no log p(x)."""
    monkeypatch.setattr(subprocess, "Popen", PopenInProcess)
    grey = [*TINY, "--binarize", "none", "--out", tmp_path]
    refused(command("compare", "--likelihoods", "categorical", "cross-entropy", *grey), "cross-entropy has no log p(x)")
    loss, some = tmp_path / "cross-entropy", tmp_path / "categorical"
    result = inside("evaluate", loss, some, "--proposal", "guide")
    assert result.returncode == 0, result.stderr
    found = json.loads((loss / "evaluation" / "summary.json").read_text())
    assert found["log_likelihood"] is None
    assert "nan" not in result.stdout
    assert (loss / "evaluation" / "figures" / "rate_distortion.png").exists()
    refused(command("evaluate", loss, "--ais-temperatures", 5), "requires log weights", "not a log-likelihood")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], ["two or more"]),
        (["--priors", "standard"], ["two or more"]),
        (["--priors", "standard", "standard"], ["two or more"]),
        (["--priors", "standard", "vamp", "--objectives", "elbo", "iwae"], ["one of --priors"]),
        (
            ["--priors", "standard", "vamp", "--program", "autoencoder"],
            ["--prior has no effect with --program autoencoder"],
        ),
        (["--priors", "standard", "unheard-of"], ["unheard-of", "laplace"]),
        (["--priors", "standard", "vamp", "--seeds", "0"], ["--seeds is 0"]),
        (["--likelihoods", "bernoulli", "categorical"], ["different pixels (bernoulli dynamic, categorical none)"]),
    ],
)
def test_compare_rejects_incomparable_runs(
    flags: Sequence[str], words: Sequence[str], tmp_path: Path, refused: Callable[..., None]
) -> None:
    refused(command("compare", *flags, "--out", tmp_path / "out"), *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("part", "name"), [(part, name) for part in PARTS for name in sorted(NAMES[part])])
def test_every_name_offered_by_help_runs(part: str, name: str, tiny_run: Path, counts: Path, tmp_path: Path) -> None:
    """Three epochs on digits in this process; the run of the defaults exists already."""
    run = tiny_run
    if name != json.loads((run / "config.json").read_text())[part]:
        run = tmp_path / "run"
        data = ["--data", counts, "--train-images", 200] if name in LIKELIHOODS_OF["counts"][:2] else []
        # test_graph_step.py covers recording; recording a component with 50 units takes seconds.
        few = [] if part == "program" else ["--latent-dim", 5, "--compile", "off"]
        result = inside("fit", *TINY, *few, f"--{part}", name, *data, "--out", run)
        assert result.returncode == 0, result.stderr
    summary = json.loads((run / "summary.json").read_text())
    assert summary["config"][part] == name
    assert math.isfinite(summary["distortion"])
    if name in WITHOUT_DENSITY:
        assert (summary["elbo"], summary["log_likelihood"], summary["bits_per_dim"]) == (None, None, None)
        assert WITHOUT_DENSITY[name] in summary["reasons"]["log_likelihood"]
    else:
        assert math.isfinite(summary["log_likelihood"])
        assert summary["elbo"] <= summary["log_likelihood"]
