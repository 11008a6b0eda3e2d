"""evaluate.py with tiny settings: each instrument, one added from outside, and rejected input."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import arviz
import numpy as np
import pytest
import torch
from helpers.bits import assert_same
from helpers.calls import TINY, command, inside
from matplotlib.figure import Figure

from pyro_vae.data import datasets
from pyro_vae.errors import UserError
from pyro_vae.infer.parameters import unconstrained_param
from pyro_vae.instruments import INSTRUMENTS, EvaluatedRun, Result, estimators
from pyro_vae.runs import Checkpoints, RunFolder, load_run
from pyro_vae.trace import Batch


def test_evaluate_reproduces_the_summary_of_fit(
    run: Path, tmp_path: Path, promised: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another process, and in a copy of the folder elsewhere, which contains all that is needed."""
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(run, copy)
    monkeypatch.chdir(copy.parent)
    result = inside("evaluate", "copy", "--proposal", "guide")
    assert result.returncode == 0, result.stderr
    fitted = json.loads((run / "summary.json").read_text())
    found = json.loads((copy / "evaluation" / "summary.json").read_text())
    keys = ("elbo", "log_likelihood", "rate", "khat_median", "active_units", "iwae")
    assert {key: found[key] for key in keys} == {key: fitted[key] for key in keys}
    assert found.keys() == fitted.keys()
    of_the_fit = ("parameters", "epochs", "train_seconds")
    assert {key: found[key] for key in of_the_fit} == {key: fitted[key] for key in of_the_fit}
    promised(f"{len(keys)} of {len(keys)} metrics of a run are reproduced by evaluating a copy of its folder")


def test_averaged_weights_are_used_when_a_run_is_opened(tmp_path: Path) -> None:
    """For a finished run, with equal scores; and for an unfinished one, whose weights and averages differ."""
    folder = tmp_path / "averaged"
    flags = ["--ema", 0.9, "--optimizer", "adamax", "--net", "resnet", "--depth", 1, "--width", 4]
    fit = inside("fit", *TINY, *flags, "--checkpoint-seconds", 0, "--out", folder)
    assert fit.returncode == 0, fit.stderr
    assert inside("evaluate", folder, "--proposal", "guide").returncode == 0
    fitted, found = (json.loads((path / "summary.json").read_text()) for path in (folder, folder / "evaluation"))
    for key in ("elbo", "log_likelihood", "rate", "khat_median", "active_units", "iwae"):
        assert found[key] == fitted[key]
    history = Checkpoints(folder / "checkpoints", RunFolder(folder).config())
    list(history.paths().values())[-1].unlink()
    step, state = history.newest()
    assert step == 8
    torch.set_default_dtype(torch.float32)  # as in the script
    run = load_run(folder)
    with run.program.scope():
        weights = {name: unconstrained_param(name).detach() for name in state["svi"]["params"]}
    assert_same(weights, state["average"]["params"])
    assert not any(torch.equal(weights[name], value) for name, value in state["svi"]["params"].items())


def test_evaluate_draws_runs_side_by_side(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "iwae"
    fit = inside("fit", *TINY, "--objective", "iwae", "--num-particles", 3, "--prior", "mixture", "--out", other)
    assert fit.returncode == 0, fit.stderr
    result = inside("evaluate", run, other, "--num-samples", 60, "--test-images", 10, render=True)
    assert result.returncode == 0, result.stderr
    summaries = [json.loads((r / "evaluation" / "summary.json").read_text()) for r in (run, other)]
    for summary in summaries:
        assert (summary["num_samples"], summary["num_test_images"]) == (60, 10)
        assert f"{summary['log_likelihood']:.2f}" in result.stdout
    pictures = [(r / "evaluation" / "figures" / "bounds.png").read_bytes() for r in (run, other)]
    assert pictures[0] == pictures[1]


def test_evaluate_writes_the_curve_with_both_errors(run: Path) -> None:
    assert inside("evaluate", run, "--proposal", "guide").returncode == 0
    lines = (run / "evaluation" / "bounds.csv").read_text().splitlines()
    assert lines[0] == "num_particles,iwae,se_over_images,se_over_groups"
    rows = np.array([[float(cell) for cell in line.split(",")] for line in lines[1:]])
    summary = json.loads((run / "evaluation" / "summary.json").read_text())
    np.testing.assert_allclose(rows[:, 1], list(summary["iwae"].values()))
    assert rows[0, 2] == pytest.approx(summary["elbo_se"])
    assert rows[-1, 3] == pytest.approx(summary["log_likelihood_mc_se"])
    scores = arviz.from_netcdf(str(run / "evaluation" / "scores.nc"))["constant_data"]
    for name in ("psis", "jvi1", "jvi2"):
        assert scores[name].to_numpy().mean() == pytest.approx(summary[name])
    # Jackknife corrections raise a lower bound, up to noise far below their size.
    assert summary["log_likelihood"] < summary["jvi1"] < summary["log_likelihood"] + 1


def test_evaluate_adapts_proposals_by_default(run: Path) -> None:
    """The bounds are those of the guide; the estimate is above the last of them, and says how it was made."""
    assert inside("evaluate", run, "--num-samples", 400).returncode == 0
    found = json.loads((run / "evaluation" / "summary.json").read_text())
    assert (found["proposal"], found["adapted_fraction"]) == ("adaptive", 1.0)
    assert found["log_likelihood"] > found["iwae"]["400"]
    assert found["khat_bad_fraction"] < 0.1
    scores = arviz.from_netcdf(str(run / "evaluation" / "scores.nc"))["constant_data"]
    assert scores["evaluations"].to_numpy().mean() == pytest.approx(found["density_evaluations"])
    assert scores["adapted"].to_numpy().all()


def test_evaluate_runs_annealing(run: Path, refused: Callable[..., None]) -> None:
    flags = ("--ais-temperatures", 20, "--chains", 4, "--leapfrogs", 2, "--test-images", 10, "--proposal", "guide")
    result = inside("evaluate", run, *flags)
    assert result.returncode == 0, result.stderr
    found = json.loads((run / "evaluation" / "summary.json").read_text())
    annealed = found["annealing"]
    assert (annealed["num_temperatures"], annealed["num_chains"], annealed["start"]) == (20, 4, "gaussian")
    arrays = arviz.from_netcdf(str(run / "evaluation" / "annealing.nc"))["constant_data"]
    assert arrays["log_likelihood"].to_numpy().mean() == pytest.approx(annealed["log_likelihood"])
    gap = (arrays["simulated_upper"] - arrays["simulated_lower"]).to_numpy()
    assert gap.mean() == pytest.approx(annealed["gap"])
    # 100 samples of a guide trained for three epochs give a lower value.
    assert found["log_likelihood"] - 0.1 < annealed["log_likelihood"] < found["log_likelihood"] + 1
    assert f"{annealed['log_likelihood']:.2f}" in result.stdout
    assert "AIS" in result.stdout
    refused(command("evaluate", run, "--ais-temperatures", -1), "--ais-temperatures is -1")
    refused(command("evaluate", run, "--sbc-images", -5), "--sbc-images is -5")
    refused(command("evaluate", run, "--ais-temperatures", 5, "--chains", 0), "num_chains is 0")
    refused(command("evaluate", run, "--ais-temperatures", 5, "--chains-per-group", 5), "it must divide --chains, 16")


def test_annealing_from_the_prior_adds_a_rate_distortion_curve(run: Path) -> None:
    flags = ["--ais-temperatures", 20, "--chains", 4, "--chains-per-group", 2, "--ais-start", "prior"]
    flags += ["--test-images", 10]
    result = inside("evaluate", run, *flags, render=True)
    assert result.returncode == 0, result.stderr
    annealed = json.loads((run / "evaluation" / "summary.json").read_text())["annealing"]
    curve = annealed["rate_distortion"]
    arrays = arviz.from_netcdf(str(run / "evaluation" / "annealing.nc"))["constant_data"]
    for name in ("rate", "distortion"):
        np.testing.assert_allclose(arrays[name].to_numpy().mean(1), curve[name])
    assert (curve["b"][0], curve["b"][-1], curve["rate"][0]) == (0, 1, 0)
    assert curve["rate"][-1] + curve["distortion"][-1] == pytest.approx(-annealed["log_likelihood"])
    assert annealed["group_size"] == 2
    assert (arrays["ess"] <= 2).all()  # of two groups for each image
    assert 0 < annealed["estimator_se"] < annealed["log_likelihood_se"]
    assert (run / "evaluation" / "figures" / "annealed_rate_distortion.png").exists()


def test_evaluate_reports_posterior_diagnostics(run: Path) -> None:
    result = inside("evaluate", run, "--local-vi-steps", 300, "--sbc-images", 50, "--test-images", 10, render=True)
    assert result.returncode == 0, result.stderr
    found = json.loads((run / "evaluation" / "summary.json").read_text())
    local = found["local"]
    arrays = arviz.from_netcdf(str(run / "evaluation" / "local.nc"))["constant_data"]
    for family in ("diagonal", "flow"):
        gain = (arrays[family] - arrays["amortized"]).to_numpy()
        assert gain.mean() == pytest.approx(local[f"{family}_gain"])
        assert gain.mean() > 3 * local[f"{family}_gain_se"] > 0  # after three epochs there is much to gain
    if found["mutual_information"] is None:  # ten images: the limit may be near
        assert "at its limit" in found["reasons"]["mutual_information"] == found["reasons"]["marginal_kl"]
    else:
        assert found["mutual_information"] <= math.log(10) - 0.5
        assert found["mutual_information"] + found["marginal_kl"] == pytest.approx(found["rate"])
    assert found["mutual_information_upper"] > 0
    figures = {path.stem for path in (run / "evaluation" / "figures").glob("*.png")}
    assert {"calibration", "rate_distortion", "bounds"} <= figures
    ranks = arviz.from_netcdf(str(run / "evaluation" / "calibration.nc"))["constant_data"]["ranks"]
    assert ranks.dims == ("unit", "image")
    assert ranks.shape == (50, 50)
    assert (ranks.min(), ranks.max()) == (0, 99)


def test_evaluate_scores_units_against_known_factors(run: Path, tmp_path: Path, refused: Callable[..., None]) -> None:
    folder = tmp_path / "shapes"
    flags = ["--data", "shapes", "--binarize", "threshold", "--net", "relu", "--latent-dim", 4, "--learning-rate", 0.01]
    fit = inside("fit", *TINY, *flags, "--train-images", 500, "--epochs", 20, "--out", folder)
    assert fit.returncode == 0, fit.stderr
    result = inside("evaluate", folder, "--disentanglement", "--test-images", 200, render=True)
    assert result.returncode == 0, result.stderr
    found = json.loads((folder / "evaluation" / "summary.json").read_text())["disentanglement"]
    assert found["factors"] == ["shape", "scale", "rotation", "x", "y"]
    assert (found["num_train_images"], found["num_test_images"]) == (500, 200)
    matrix = np.array(found["information"])
    assert matrix.shape == (4, 5)
    assert found["units"] == matrix.argmax(0).tolist()
    ordered = np.sort(matrix, axis=0)
    assert found["mig"] == pytest.approx((ordered[-1] - ordered[-2]).mean())
    # x and y, which move the most pixels, are predicted far above chance, 1/8.
    assert min(found["accuracy"][3:]) > 3 / 8
    assert f"MIG {found['mig']:.2f}, SAP {found['sap']:.2f}" in result.stdout
    assert (folder / "evaluation" / "figures" / "factors.png").stat().st_size > 5000
    refused(command("evaluate", run, "--disentanglement"), str(run), "two or more known factors")


def test_evaluate_runs_the_probe(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_vae.instruments.probe._FINETUNED_SUBSETS", 1)  # trains an encoder for about a second
    result = inside("evaluate", run, "--probe", render=True)
    assert result.returncode == 0, result.stderr
    rows = json.loads((run / "evaluation" / "summary.json").read_text())["probe"]
    kinds = ["posterior means", "pixels", "principal components"]
    expected = [(name, classifier) for name in kinds for classifier in ("logistic", "kNN")]
    expected += [("fitted encoder", "fine-tuned"), ("random encoder", "fine-tuned")]
    assert [(row["features"], row["classifier"], row["labels"]) for row in rows] == [
        (*pair, labels) for pair in expected for labels in (10, 100, 300)
    ]
    for row in rows:
        assert f"{100 * row['accuracy']:.1f} +- {100 * row['se']:.1f}" in result.stdout
    (best,) = (row for row in rows if (row["features"], row["classifier"], row["labels"]) == (*expected[2], 300))
    assert best["accuracy"] > 0.5  # chance level for ten classes
    assert (run / "evaluation" / "figures" / "probe.png").stat().st_size > 5000

    digits = datasets.DATASETS["digits"]
    unlabelled = replace(digits, load=lambda *args: replace(digits.load(*args), labels=None))
    monkeypatch.setitem(datasets.DATASETS, "digits", unlabelled)
    result = inside("evaluate", run, "--probe")
    assert result.returncode == 0, result.stderr
    assert f"{run.name}: not probed, the images have no labels" in result.stdout
    found = json.loads((run / "evaluation" / "summary.json").read_text())
    assert (found["probe"], found["reasons"]["probe"]) == (None, "the images have no labels")


@dataclass(frozen=True)
class Ink:
    """An instrument added from outside: the mean of the pixels of each test image."""

    name: ClassVar[str] = "ink"

    ink_scale: float = 0.0
    """Multiple of the ink."""

    @property
    def requested(self) -> bool:
        return self.ink_scale > 0

    def check(self, run: EvaluatedRun) -> None:
        if self.ink_scale > 9:
            raise UserError(f"{run.folder.path} has less ink.")

    def measure(self, run: EvaluatedRun, seed: int) -> Result:
        ink = self.ink_scale * Batch.of(run.test).x.flatten(1).mean(1).cpu().numpy()
        numbers = {"mean": float(ink.mean()), "seed": seed, "nothing": None}
        return Result(numbers, {"nothing": "there is none"}, {"ink": ink}, figures={"ink": Figure})

    def table(self, summaries: Mapping[str, Mapping[str, Any]]) -> str:
        return "\n".join(f"{name} has ink {numbers['ink']['mean']:.3f}" for name, numbers in summaries.items())


def test_instrument_can_be_added_from_outside(
    run: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., None]
) -> None:
    """With a flag, metrics, arrays, a figure and a line of the table; without its flag nothing changes."""
    monkeypatch.setitem(INSTRUMENTS, "ink", Ink)
    result = inside("evaluate", run, "--ink-scale", 2, "--seed", 3, "--num-samples", 5)
    assert result.returncode == 0, result.stderr
    found = json.loads((run / "evaluation" / "summary.json").read_text())
    arrays = arviz.from_netcdf(str(run / "evaluation" / "ink.nc"))["constant_data"]
    assert arrays["ink"].shape == (20,)
    assert found["ink"] == {"mean": pytest.approx(float(arrays["ink"].mean())), "seed": 3, "nothing": None}
    assert found["reasons"]["nothing"] == "there is none"
    assert (run / "evaluation" / "figures" / "ink.png").stat().st_size > 0
    assert f"{run.name} has ink {found['ink']['mean']:.3f}" in result.stdout
    refused(command("evaluate", run, "--ink-scale", 10), "has less ink")
    assert inside("evaluate", run, "--num-samples", 5).returncode == 0
    assert "ink" not in json.loads((run / "evaluation" / "summary.json").read_text())


def test_evaluate_rejects_folders_without_a_run(run: Path, tmp_path: Path, refused: Callable[..., None]) -> None:
    refused(command("evaluate", tmp_path), str(tmp_path), "no config.json")
    refused(command("evaluate", run, run), "twice")
    damaged = tmp_path / "run"
    shutil.copytree(run, damaged)
    for path in (damaged / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    refused(command("evaluate", damaged), "No checkpoint can be loaded", "is damaged")


def test_evaluate_compares_estimators(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All estimators of a two-unit model, smaller than by default, agree with the longest annealing within 0.5 nats."""
    monkeypatch.setattr(estimators, "_GUIDE_SAMPLES", (200, 5000))
    for name, value in (("_LOCAL_STEPS", 50), ("_LOCAL_SAMPLES", 200), ("_ADAPTED_SAMPLES", (200,))):
        monkeypatch.setattr(estimators, name, value)
    monkeypatch.setattr(estimators, "_FITTED_START", (10,))
    monkeypatch.setattr(estimators, "_FROM_PRIOR", 20)
    monkeypatch.setattr(estimators, "_FROM_GUIDE", (50,))
    result = inside("evaluate", run, "--estimators", "--test-images", 10, "--num-samples", 50, render=True)
    assert result.returncode == 0, result.stderr
    found = json.loads((run / "evaluation" / "summary.json").read_text())["estimators"]
    assert list(found)[-1] == "AIS from the guide, 50"
    assert all(abs(row["difference"]) < 0.5 for row in found.values())
    assert found["guide, 200"]["density_evaluations"] == 200
    # Pilot: 20 steps of each of two parts and 5 between them, with 3 and 5 leapfrogs and 8 particles; then 16 chains.
    assert found["AIS from the guide, 50"]["density_evaluations"] > 16 * 49 * 5
    arrays = arviz.from_netcdf(str(run / "evaluation" / "estimators.nc"))["constant_data"]
    assert arrays["adaptive_200"].to_numpy().mean() == pytest.approx(found["adaptive, 200"]["log_likelihood"])
    for name in found:
        assert name in result.stdout
