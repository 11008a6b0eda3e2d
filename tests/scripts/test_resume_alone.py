"""fit.py --resume with the run folder alone, and with the flags that may change."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers.calls import TINY, command, inside
from helpers.program_files import NET

from pyro_vae.infer import schedules

FLAGS = [*TINY, "--latent-dim", 4, "--prior", "mixture", "--schedule", "constant"]


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def content(run: Path) -> dict[Path, bytes]:
    return {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def summary(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "summary.json").read_text()))


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run with other flags than the defaults."""
    run = tmp_path_factory.mktemp("short") / "run"
    result = inside("fit", *FLAGS, "--out", run)
    assert result.returncode == 0, result.stderr
    return run


@pytest.fixture
def copied(short: Path, tmp_path: Path) -> Path:
    return shutil.copytree(short, tmp_path / "run")


def test_folder_alone_continues_the_run(short: Path, copied: Path) -> None:
    """From the checkpoint of the first step, to the same numbers."""
    shutil.rmtree(copied / "figures")
    (copied / "summary.json").unlink()
    for path in sorted((copied / "checkpoints").iterdir())[1:]:
        path.unlink()
    result = inside("fit", "--resume", "--out", copied)
    assert result.returncode == 0, result.stderr
    assert metrics(copied) == metrics(short)
    assert summary(copied)["log_likelihood"] == summary(short)["log_likelihood"]
    assert summary(copied)["config"] == summary(short)["config"]


def test_finished_run_is_left_as_it_is(copied: Path) -> None:
    before = content(copied)
    assert "nothing to resume" in inside("fit", "--resume", "--out", copied).stdout
    assert content(copied) == before


def test_more_epochs_are_those_of_a_longer_run(copied: Path, tmp_path: Path) -> None:
    """To the bit, if the learning rate is constant: a run of five epochs, and one of three continued for two more."""
    whole = tmp_path / "whole"
    assert inside("fit", *FLAGS, "--epochs", 5, "--out", whole).returncode == 0
    result = inside("fit", "--resume", "--out", copied, "--epochs", 5)
    assert result.returncode == 0, result.stderr
    assert metrics(copied) == metrics(whole)
    assert summary(copied)["log_likelihood"] == summary(whole)["log_likelihood"]
    assert json.loads((copied / "config.json").read_text()) == json.loads((whole / "config.json").read_text())
    assert "nothing to resume" in inside("fit", "--resume", "--out", copied).stdout


def test_learning_rates_are_those_of_the_new_number_of_epochs(run: Path) -> None:
    """Cosine over 5 epochs of 3 steps, from the fourth on; the first three followed it over 3 epochs."""
    assert inside("fit", "--resume", "--out", run, "--epochs", 5).returncode == 0
    rates = [line["learning_rate"] / 3e-3 for line in metrics(run)]
    assert rates[:3] == pytest.approx([schedules.SCHEDULES["cosine"]((3 * n - 1) / 9) for n in (1, 2, 3)])
    assert rates[3:] == pytest.approx([schedules.SCHEDULES["cosine"]((3 * n - 1) / 15) for n in (4, 5)])


def test_failed_attempt_keeps_the_finished_run(copied: Path, refused: Callable[..., None]) -> None:
    for path in (copied / "checkpoints").iterdir():
        path.write_bytes(b"damaged")
    before = summary(copied)
    refused(command("fit", "--resume", "--out", copied, "--epochs", 5), "No checkpoint can be loaded")
    assert summary(copied) == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--latent-dim", 50], ["different values of latent_dim"]),  # the default, given
        (["--seed", 1, "--prior", "standard"], ["different values of prior, seed"]),
        (["--data", "shapes"], ["different values of data"]),
        (["--program", "two-layer"], ["different values of program"]),
        (["--epochs", 2], ["--epochs is 2", "started with 3", "only raise"]),
        (["--overwrite"], ["give only one of them"]),
    ],
)
def test_flags_that_cannot_change_are_refused(
    flags: Sequence[object], words: Sequence[str], copied: Path, refused: Callable[..., None]
) -> None:
    before = content(copied)
    refused(command("fit", "--resume", "--out", copied, *flags), *words)
    assert content(copied) == before


@pytest.mark.parametrize("flag", [("--patience", 9), ("--ema", 0.9)])
def test_epochs_of_a_run_with_other_final_weights_are_not_raised(
    flag: tuple[str, object], copied: Path, refused: Callable[..., None]
) -> None:
    """Its last checkpoint holds the best or the averaged weights, from which training would go on differently."""
    name, value = flag
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, name[2:]: value}))
    refused(command("fit", "--resume", "--out", copied, "--epochs", 5), "cannot be raised", "--overwrite")


def test_moved_data_and_another_device_are_accepted(counts: Path, tmp_path: Path) -> None:
    run, moved = tmp_path / "run", tmp_path / "moved.npy"
    assert inside("fit", *TINY, "--data", counts, "--out", run).returncode == 0
    (run / "summary.json").unlink()
    counts.rename(moved)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "device": "cuda"}))  # of another machine
    result = inside(
        "fit", "--resume", "--out", run, "--data", moved, "--data-root", tmp_path / "root", "--device", "cpu"
    )
    assert result.returncode == 0, result.stderr
    changed = {"data": str(moved), "data_root": str(tmp_path / "root"), "device": "cpu"}
    assert json.loads((run / "config.json").read_text()) == {**config, **changed}


@pytest.fixture
def counts(tmp_path: Path) -> Path:
    import numpy as np

    path = tmp_path / "counts.npy"
    np.save(path, np.random.default_rng(0).poisson(3.0, (400, 6)))
    return path


def test_custom_program_is_executed_only_if_it_is_named(tmp_path: Path, refused: Callable[..., None]) -> None:
    run, moved = tmp_path / "run", tmp_path / "moved.py"
    (tmp_path / "net.py").write_text(NET)
    assert inside("fit", *TINY, "--program", tmp_path / "net.py:factory", "--out", run).returncode == 0
    (run / "summary.json").unlink()
    (tmp_path / "net.py").rename(moved)
    refused(command("fit", "--resume", "--out", run), "started with --program", "net.py:factory", "current path")
    assert inside("fit", "--resume", "--out", run, "--program", f"{moved}:factory").returncode == 0


def test_missing_folder_starts_with_the_flags_that_are_given(tmp_path: Path) -> None:
    """As torchrun --max-restarts needs it: the first call finds no run."""
    assert inside("fit", *FLAGS, "--resume", "--out", tmp_path / "run").returncode == 0
    assert len(metrics(tmp_path / "run")) == 3


def test_seeds_continue_by_the_folder_of_the_first(tmp_path: Path) -> None:
    runs = [tmp_path / "run", tmp_path / "run-seed8"]
    assert inside("fit", *FLAGS, "--seed", 7, "--seeds", 2, "--out", runs[0]).returncode == 0
    before = [summary(run)["log_likelihood"] for run in runs]
    for run in runs:
        (run / "summary.json").unlink()
    assert inside("fit", "--resume", "--seeds", 2, "--out", runs[0]).returncode == 0
    assert [summary(run)["log_likelihood"] for run in runs] == before
