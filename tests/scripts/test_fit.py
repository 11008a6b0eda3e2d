"""fit.py with tiny settings: its files, rejected input, resuming, and exit status."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import arviz
import numpy as np
import pytest
import torch
from helpers.calls import MORE, TINY, command, inside, script, with_default_sigint


def finite(value: object) -> bool:
    if isinstance(value, dict):
        return all(finite(v) for v in value.values())
    return not isinstance(value, float) or math.isfinite(value)


def test_fit_writes_the_documented_files(tiny_run: Path) -> None:
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


def test_density_has_bits_per_dimension(tmp_path: Path) -> None:
    result = inside("fit", *TINY, "--likelihood", "gaussian", "--binarize", "none", *MORE, "--out", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["bits_per_dim"] == pytest.approx(8 - summary["log_likelihood"] / (64 * math.log(2)))
    assert 0 < summary["bits_per_dim"] < 8  # better than uniform pixels, yet a code cannot be free


def test_resume_continues_to_the_same_numbers(run: Path, tmp_path: Path, refused: Callable[..., None]) -> None:
    """After damage to the last checkpoint and loss of the summary, the run ends with the same numbers."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "summary.json").unlink()
    damaged = folder / "checkpoints" / "step-000000009.safetensors"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-5] + b"wrong")
    config = json.loads((folder / "config.json").read_text())
    refused(command("fit", *TINY, "--seed", 1, "--out", folder, "--resume"), "different values of seed")
    assert json.loads((folder / "config.json").read_text()) == config
    result = script("fit", *TINY, "--out", folder, "--resume")
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines() == [
        f"{damaged} is damaged: its digest does not match its content. Using the checkpoint of step 6 instead."
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


@pytest.mark.parametrize(
    ("number", "status", "compiled"),
    [pytest.param(signal.SIGINT, 130, "auto", marks=pytest.mark.slow), (signal.SIGTERM, 143, "off")],
)
def test_signal_ends_a_run_that_can_be_resumed(number: int, status: int, compiled: str, tmp_path: Path) -> None:
    """A run of this many steps is compiled, unless compilation is off."""
    folder = tmp_path / "run"
    arguments = [*TINY[:4], "--epochs", "20000", "--compile", compiled, "--out", str(folder)]
    process = subprocess.Popen(with_default_sigint(command("fit", *arguments)), stderr=subprocess.PIPE, text=True)
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
        (["--binarize", "none", "--likelihood", "bernoulli"], ["'x'", "Bernoulli", "binarize"]),
        (["--likelihood", "gaussian", "--binarize", "fixed"], ["--binarize none"]),
        (["--test-images", "100000"], ["100000", "256"]),
        (["--data", "mnist", "--data-root", "/dev/null"], ["/dev/null", "--data-root"]),
    ],
)
def test_fit_rejects_bad_input_with_one_line(
    arguments: Sequence[str], words: Sequence[str], tmp_path: Path, refused: Callable[..., None]
) -> None:
    refused(command("fit", *TINY, *arguments, "--out", tmp_path / "run"), *words)
    assert not (tmp_path / "run").exists()


def test_fit_rejects_a_missing_device(
    tmp_path: Path, refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(command("fit", *TINY, "--device", "cuda", "--out", tmp_path / "run"), "--device cuda")


def test_bad_input_ends_the_process_with_one_line() -> None:
    result = script("fit", "--epochs", "0")
    assert result.returncode == 2
    assert result.stderr == "error: --epochs is 0; it must be at least 1.\n"


def test_flag_parser_rejects_unknown_names() -> None:
    result = inside("fit", "--prior", "unheard-of")
    assert result.returncode == 2
    assert "standard" in result.stderr


def test_fit_rejects_folders_that_it_must_not_modify(run: Path, tmp_path: Path, refused: Callable[..., None]) -> None:
    before = (run / "summary.json").read_bytes()
    refused(command("fit", *TINY, "--out", run), "exists", "--resume", "--overwrite")
    assert (run / "summary.json").read_bytes() == before
    file = tmp_path / "file"
    file.write_text("mine")
    refused(command("fit", *TINY, "--out", file), str(file), "--out")
    refused(command("fit", *TINY, "--out", file / "below"), str(file), "cannot be written", "--out")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("mine")
    refused(command("fit", *TINY, "--out", tmp_path / "thesis", "--overwrite"), "not a run folder")
    assert file.read_text() == (tmp_path / "thesis" / "chapter.tex").read_text() == "mine"


def test_mnist_beats_independent_pixels(mnist_root: Path, tmp_path: Path) -> None:
    """One epoch on 5,000 real images clearly beats the entropy of independent pixels, about -206 nats."""
    flags = ["--data", "mnist", "--data-root", mnist_root, "--train-images", 5000, "--test-images", 100]
    result = inside("fit", *flags, "--epochs", 3, "--num-samples", 100, "--out", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["log_likelihood"] > -170
    assert summary["elbo"] < summary["log_likelihood"]
