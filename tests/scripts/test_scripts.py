"""Every script, in a process of its own at least once, with tiny settings: what it writes, refuses, how it ends."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import arviz
import numpy as np
import pytest
import torch
from helpers.bits import assert_same
from helpers.calls import MORE, ROOT, TINY, Inside, command, hearing, inside, script
from matplotlib.figure import Figure

from pyro_vae.data import datasets
from pyro_vae.errors import UserError
from pyro_vae.infer.parameters import unconstrained
from pyro_vae.instruments import INSTRUMENTS, EvaluatedRun, Result
from pyro_vae.runs import History, RunFolder, load_run
from pyro_vae.trace import Batch


def finite(value: object) -> bool:
    if isinstance(value, dict):
        return all(finite(v) for v in value.values())
    return not isinstance(value, float) or math.isfinite(value)


def test_fit_writes_the_run_folder_of_the_contract(tiny_run: Path) -> None:
    run = tiny_run
    summary = json.loads((run / "summary.json").read_text())
    assert finite(summary)
    assert summary["config"] == json.loads((run / "config.json").read_text())
    assert summary["num_test_images"] == 20
    assert summary["num_samples"] == 100
    assert summary["iwae"].keys() == {"1", "2", "5", "10", "50", "100"}
    assert summary["elbo"] <= summary["iwae"]["5"] <= summary["iwae"]["50"] <= summary["log_likelihood"]
    assert {name for name, value in summary.items() if value is None} == summary["reasons"].keys() == set()
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in metrics] == [0, 1, 2]
    assert [line["step"] for line in metrics] == [3, 6, 9]
    assert metrics[-1]["elbo"] > metrics[0]["elbo"]
    assert summary["train_seconds"] == pytest.approx(sum(line["seconds"] for line in metrics))
    figures = {path.stem for path in (run / "figures").glob("*.png")}
    assert figures == {"learning_curve", "bounds", "prior_samples", "reconstructions", "khat"}
    scores = arviz.from_netcdf(str(run / "scores.nc"))["constant_data"]
    assert scores["log_likelihood"].to_numpy().mean() == pytest.approx(summary["log_likelihood"])
    np.testing.assert_allclose(scores["iwae"].to_numpy().mean(1), list(summary["iwae"].values()))


def test_evaluate_finds_again_what_fit_found(run: Path, tmp_path: Path, promised: Callable[[str], None]) -> None:
    """In a copy of the folder, at another place: all that it needs is in it."""
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(run, copy)
    result = script("evaluate", "copy", cwd=copy.parent)
    assert result.returncode == 0, result.stderr
    fitted = json.loads((run / "summary.json").read_text())
    found = json.loads((copy / "evaluation" / "summary.json").read_text())
    keys = ("elbo", "log_likelihood", "rate", "khat_median", "active_units", "iwae")
    assert {key: found[key] for key in keys} == {key: fitted[key] for key in keys}
    assert found.keys() == fitted.keys()
    of_the_fit = ("parameters", "epochs", "train_seconds")
    assert {key: found[key] for key in of_the_fit} == {key: fitted[key] for key in of_the_fit}
    promised(f"{len(keys)} of {len(keys)} numbers of a run the same when it is evaluated at another place")


def test_a_run_that_averages_its_weights_is_opened_with_the_averages(tmp_path: Path) -> None:
    """Finished, it is evaluated as it was scored; and before its end, where weights and averages differ."""
    folder = tmp_path / "averaged"
    flags = ["--ema", 0.9, "--optimizer", "adamax", "--net", "resnet", "--depth", 1, "--width", 4]
    fit = inside("fit", *TINY, *flags, "--checkpoint-seconds", 0, "--out", folder)
    assert fit.returncode == 0, fit.stderr
    assert inside("evaluate", folder).returncode == 0
    fitted, found = (json.loads((path / "summary.json").read_text()) for path in (folder, folder / "evaluation"))
    for key in ("elbo", "log_likelihood", "rate", "khat_median", "active_units", "iwae"):
        assert found[key] == fitted[key]
    history = History(folder / "checkpoints", RunFolder(folder).config())
    list(history.paths().values())[-1].unlink()
    step, state = history.newest()
    assert step == 8
    torch.set_default_dtype(torch.float32)  # that of the script
    run = load_run(folder)
    with run.program.scope():
        weights = {name: unconstrained(name).detach() for name in state["svi"]["params"]}
    assert_same(weights, state["average"]["params"])
    assert not any(torch.equal(weights[name], value) for name, value in state["svi"]["params"].items())


def test_evaluate_draws_runs_side_by_side(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "iwae"
    fit = inside("fit", *TINY, "--objective", "iwae", "--num-particles", 3, "--prior", "mixture", "--out", other)
    assert fit.returncode == 0, fit.stderr
    result = inside("evaluate", run, other, "--num-samples", 60, "--test-images", 10)
    assert result.returncode == 0, result.stderr
    summaries = [json.loads((r / "evaluation" / "summary.json").read_text()) for r in (run, other)]
    for summary in summaries:
        assert (summary["num_samples"], summary["num_test_images"]) == (60, 10)
        assert f"{summary['log_likelihood']:.2f}" in result.stdout
    pictures = [(r / "evaluation" / "figures" / "bounds.png").read_bytes() for r in (run, other)]
    assert pictures[0] == pictures[1]


def test_evaluate_writes_the_curve_with_both_errors(run: Path) -> None:
    assert inside("evaluate", run).returncode == 0
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
    # Corrections of a lower bound raise it, up to noise far below these.
    assert summary["log_likelihood"] < summary["jvi1"] < summary["log_likelihood"] + 1


def test_evaluate_anneals(run: Path, refused: Callable[..., None]) -> None:
    result = inside("evaluate", run, "--temperatures", 20, "--chains", 4, "--leapfrogs", 2, "--test-images", 10)
    assert result.returncode == 0, result.stderr
    found = json.loads((run / "evaluation" / "summary.json").read_text())
    annealed = found["annealing"]
    assert (annealed["num_temperatures"], annealed["num_chains"], annealed["start"]) == (20, 4, "guide")
    arrays = arviz.from_netcdf(str(run / "evaluation" / "annealing.nc"))["constant_data"]
    assert arrays["log_likelihood"].to_numpy().mean() == pytest.approx(annealed["log_likelihood"])
    gap = (arrays["simulated_upper"] - arrays["simulated_lower"]).to_numpy()
    assert gap.mean() == pytest.approx(annealed["gap"])
    # 100 samples of a guide after three epochs fall short of it.
    assert found["log_likelihood"] - 0.1 < annealed["log_likelihood"] < found["log_likelihood"] + 1
    assert f"{annealed['log_likelihood']:.2f}" in result.stdout
    assert "AIS" in result.stdout
    refused(command("evaluate", run, "--temperatures", -1), "--temperatures is -1")
    refused(command("evaluate", run, "--calibrate", -5), "--calibrate is -5")
    refused(command("evaluate", run, "--temperatures", 5, "--chains", 0), "num_chains is 0")


def test_evaluate_says_where_the_slack_is(run: Path) -> None:
    result = inside("evaluate", run, "--local-steps", 300, "--calibrate", 50, "--test-images", 10)
    assert result.returncode == 0, result.stderr
    found = json.loads((run / "evaluation" / "summary.json").read_text())
    local = found["local"]
    arrays = arviz.from_netcdf(str(run / "evaluation" / "local.nc"))["constant_data"]
    for family in ("diagonal", "flow"):
        gain = (arrays[family] - arrays["amortized"]).to_numpy()
        assert gain.mean() == pytest.approx(local[f"{family}_gain"])
        assert gain.mean() > 3 * local[f"{family}_gain_se"] > 0  # after three epochs there is much to gain
    assert 0 < found["mutual_information"] <= math.log(10)
    assert math.isfinite(found["marginal_kl"])
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
    result = inside("evaluate", folder, "--disentanglement", "--test-images", 200)
    assert result.returncode == 0, result.stderr
    found = json.loads((folder / "evaluation" / "summary.json").read_text())["disentanglement"]
    assert found["factors"] == ["shape", "scale", "rotation", "x", "y"]
    assert (found["num_train_images"], found["num_test_images"]) == (500, 200)
    matrix = np.array(found["information"])
    assert matrix.shape == (4, 5)
    assert found["units"] == matrix.argmax(0).tolist()
    ordered = np.sort(matrix, axis=0)
    assert found["mig"] == pytest.approx((ordered[-1] - ordered[-2]).mean())
    # x and y, which move the most pixels, are told far better than by chance, 1/8.
    assert min(found["accuracy"][3:]) > 3 / 8
    assert f"MIG {found['mig']:.2f}, SAP {found['sap']:.2f}" in result.stdout
    assert (folder / "evaluation" / "figures" / "factors.png").stat().st_size > 5000
    refused(command("evaluate", run, "--disentanglement"), str(run), "several known factors")


def test_evaluate_probes_what_a_program_makes_of_images(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_vae.instruments.probe._FINETUNED_SUBSETS", 1)  # an encoder is trained for a second
    result = inside("evaluate", run, "--probe")
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
    assert best["accuracy"] > 0.5  # of pixels, of ten classes
    assert (run / "evaluation" / "figures" / "probe.png").stat().st_size > 5000

    digits = datasets.DATASETS["digits"]
    unlabelled = replace(digits, load=lambda *args: replace(digits.load(*args), labels=None))
    monkeypatch.setitem(datasets.DATASETS, "digits", unlabelled)
    result = inside("evaluate", run, "--probe")
    assert result.returncode == 0, result.stderr
    assert f"{run.name}: nothing to probe, the images have no labels" in result.stdout
    found = json.loads((run / "evaluation" / "summary.json").read_text())
    assert (found["probe"], found["reasons"]["probe"]) == (None, "the images have no labels")


@dataclass(frozen=True)
class Ink:
    """An instrument from outside: the mean of the pixels of each test image."""

    name: ClassVar[str] = "ink"

    ink_scale: float = 0.0
    """Multiple of the ink."""

    @property
    def asked(self) -> bool:
        return self.ink_scale > 0

    def check(self, run: EvaluatedRun) -> None:
        if self.ink_scale > 9:
            raise UserError(f"{run.folder.path} has less ink.")

    def measure(self, run: EvaluatedRun, seed: int) -> Result:
        ink = self.ink_scale * Batch.of(run.test).x.flatten(1).mean(1).cpu().numpy()
        numbers = {"mean": float(ink.mean()), "seed": seed, "nothing": None}
        return Result(numbers, {"nothing": "there is none"}, {"ink": ink}, figures={"ink": Figure()})

    def table(self, summaries: Mapping[str, Mapping[str, Any]]) -> str:
        return "\n".join(f"{name} has ink {numbers['ink']['mean']:.3f}" for name, numbers in summaries.items())


def test_an_instrument_is_added_from_outside(
    run: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., None]
) -> None:
    """With its flag, its numbers, its arrays, its figure and its line; unasked, it leaves no trace."""
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


@pytest.mark.parametrize("name", ["fit", "evaluate", "compare", "sample", "benchmark"])
def test_help_shows_the_examples_line_by_line(name: str) -> None:
    lines = [line.rstrip() for line in inside(name, "--help").stdout.splitlines()]
    documented = (ROOT / "scripts" / f"{name}.py").read_text().split('"""')[1].splitlines()
    examples = [line for line in documented if line.startswith(f"    python scripts/{name}.py")]
    assert examples
    assert set(examples) <= set(lines)


def test_a_density_comes_with_bits_per_dimension(tmp_path: Path) -> None:
    result = inside("fit", *TINY, "--likelihood", "gaussian", "--binarize", "none", *MORE, "--out", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["bits_per_dim"] == pytest.approx(8 - summary["log_likelihood"] / (64 * math.log(2)))
    assert 0 < summary["bits_per_dim"] < 8  # better than uniform pixels, and a code cannot be free


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


def test_resume_continues_to_the_same_numbers(run: Path, tmp_path: Path, refused: Callable[..., None]) -> None:
    """A run whose last checkpoint is damaged, and which has lost its summary, ends with the same numbers."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "summary.json").unlink()
    damaged = folder / "checkpoints" / "step-000000009.safetensors"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-5] + b"wrong")
    config = json.loads((folder / "config.json").read_text())
    refused(command("fit", *TINY, "--seed", 1, "--out", folder, "--resume"), "another seed")
    assert json.loads((folder / "config.json").read_text()) == config
    result = script("fit", *TINY, "--out", folder, "--resume")
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines() == [
        f"{damaged} is damaged: its bytes are not those that were written. The checkpoint of step 6 is taken instead."
    ]
    assert damaged.with_name(f"unreadable-{damaged.name}").read_bytes() == content[:-5] + b"wrong"
    before, after = (json.loads((r / "summary.json").read_text()) for r in (run, folder))
    assert after["log_likelihood"] == before["log_likelihood"]
    lines = [json.loads(line) for r in (run, folder) for line in (r / "metrics.jsonl").read_text().splitlines()]
    assert [line["elbo"] for line in lines[3:]] == [line["elbo"] for line in lines[:3]]

    content = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    again = inside("fit", *TINY, "--out", folder, "--resume")
    assert again.returncode == 0
    assert content == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("number", "status", "compiled"), [(signal.SIGINT, 130, "auto"), (signal.SIGTERM, 143, "off")])
def test_a_signal_ends_a_run_that_can_be_resumed(number: int, status: int, compiled: str, tmp_path: Path) -> None:
    """Of so many steps a run is compiled, unless that is switched off."""
    folder = tmp_path / "run"
    arguments = [*TINY[:4], "--epochs", "20000", "--compile", compiled, "--out", str(folder)]
    process = subprocess.Popen(hearing(command("fit", *arguments)), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert errors == "stopped; continue with --resume\n"
    assert (folder / "config.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--batch-size", "301"], ["batch of 301", "300 images", "--batch-size"]),
        (["--num-samples", "0"], ["--num-samples is 0"]),
        (["--num-particles", "0"], ["--num-particles is 0"]),
        (["--learning-rate", "nan"], ["--learning-rate is nan"]),
        (["--binarize", "none"], ["'x'", "Bernoulli", "binarize"]),
        (["--likelihood", "gaussian"], ["--binarize none"]),
        (["--test-images", "100000"], ["100000", "256"]),
        (["--data", "mnist", "--data-root", "/dev/null"], ["/dev/null", "--data-root"]),
    ],
)
def test_fit_refuses_bad_input_in_one_line(
    arguments: Sequence[str], words: Sequence[str], tmp_path: Path, refused: Callable[..., None]
) -> None:
    refused(command("fit", *TINY, *arguments, "--out", tmp_path / "run"), *words)
    assert not (tmp_path / "run").exists()


def test_fit_refuses_a_device_that_is_not_there(
    tmp_path: Path, refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(command("fit", *TINY, "--device", "cuda", "--out", tmp_path / "run"), "--device cuda")


def test_bad_input_ends_a_process_with_one_line() -> None:
    result = script("fit", "--epochs", "0")
    assert result.returncode == 2
    assert result.stderr == "error: --epochs is 0; it must be at least 1.\n"


def test_the_flag_parser_refuses_unknown_names() -> None:
    result = inside("fit", "--prior", "unheard-of")
    assert result.returncode == 2
    assert "standard" in result.stderr


def test_fit_refuses_folders_it_must_not_touch(run: Path, tmp_path: Path, refused: Callable[..., None]) -> None:
    before = (run / "summary.json").read_bytes()
    refused(command("fit", *TINY, "--out", run), "exists", "--resume", "--overwrite")
    assert (run / "summary.json").read_bytes() == before
    file = tmp_path / "file"
    file.write_text("mine")
    refused(command("fit", *TINY, "--out", file), str(file), "--out")
    refused(command("fit", *TINY, "--out", file / "below"), str(file), "cannot be written", "--out")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("mine")
    refused(command("fit", *TINY, "--out", tmp_path / "thesis", "--overwrite"), "no run folder")
    assert file.read_text() == (tmp_path / "thesis" / "chapter.tex").read_text() == "mine"


def test_evaluate_refuses_what_is_no_run(run: Path, tmp_path: Path, refused: Callable[..., None]) -> None:
    refused(command("evaluate", tmp_path), str(tmp_path), "no config.json")
    refused(command("evaluate", run, run), "twice")
    damaged = tmp_path / "run"
    shutil.copytree(run, damaged)
    for path in (damaged / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    refused(command("evaluate", damaged), "No checkpoint can be loaded", "is damaged")


@pytest.mark.parametrize("name", ["fit", "evaluate", "compare", "benchmark"])
def test_help_shows_every_flag_with_its_default(name: str) -> None:
    result = inside(name, "--help")
    assert result.returncode == 0
    flags = {
        "fit": ["--learning-rate", "0.003"],
        "evaluate": ["--num-samples", "None"],
        "compare": ["--seeds", "1"],
        "benchmark": ["--blocks", "15"],
    }
    for word in [*flags[name], "default:"]:
        assert word in result.stdout
    assert "(default: [" not in result.stdout


def test_benchmark_compares_every_contender(tmp_path: Path) -> None:
    small = ["--hidden-dim", 10, "--blocks", 2, "--seconds", 0.01, "--batch-sizes", 20, "--num-particles", 1]
    result = script("benchmark", "--measure", "steps", *small, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    (case,) = json.loads((tmp_path / "benchmark.json").read_text())["steps"]
    assert case["contenders"]["hand-written"]["ratio"] == 1.0
    for name, timing in case["contenders"].items():
        assert name in result.stdout
        # No step is faster than its arithmetic, however small the machine's share.
        assert timing["seconds"] > case["floor_seconds"] > 0
    assert (tmp_path / "benchmark.png").stat().st_size > 5000


def test_mnist_reaches_what_pixel_means_cannot(mnist_root: Path, tmp_path: Path) -> None:
    """One epoch on 5,000 real images beats the entropy of independent pixels, about -206 nats, by far."""
    flags = ["--data", "mnist", "--data-root", mnist_root, "--train-images", 5000, "--test-images", 100]
    result = inside("fit", *flags, "--epochs", 3, "--num-samples", 100, "--out", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["log_likelihood"] > -170
    assert summary["elbo"] < summary["log_likelihood"]
