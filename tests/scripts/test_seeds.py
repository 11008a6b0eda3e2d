"""fit.py --seeds: each run has its own folder, with the numbers of a run by itself up to rounding."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.calls import TINY, PopenInProcess, command, inside
from helpers.run_folders import tree

from pyro_vae.runs import load_run


def summary(folder: Path) -> dict[str, object]:
    return json.loads((folder / "summary.json").read_text())


def untimed(folder: Path) -> tuple[dict[str, object], list[dict[str, object]]]:
    numbers = {name: value for name, value in summary(folder).items() if not name.endswith("_seconds")}
    lines = [json.loads(line) | {"seconds": 0.0} for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return numbers, lines


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return two runs that were fitted together. Read-only."""
    folder = tmp_path_factory.mktemp("seeds")
    result = inside("fit", *TINY, "--seeds", 2, "--out", folder / "run")
    assert result.returncode == 0, result.stderr
    folders = folder / "run", folder / "run-seed1"
    values = [summary(folder)["log_likelihood"] for folder in folders]
    mean, deviation = sum(values) / 2, abs(values[0] - values[1]) / 2**0.5
    assert f"log p(x) over 2 seeds: mean {mean:.2f} nats, standard deviation {deviation:.2f}" in result.stdout
    return folders


@pytest.fixture
def seeds(fitted: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """Return writable copies of the runs."""
    first, second = (shutil.copytree(run, tmp_path / run.name) for run in fitted)
    return first, second


def test_seeds_match_their_solo_runs_and_resume(
    seeds: tuple[Path, Path], tiny_run: Path, tmp_path: Path, refused: Callable[..., None]
) -> None:
    """The rounding errors of nine steps are far below 1e-3 nats."""
    solo = tmp_path / "solo"
    assert inside("fit", *TINY, "--seed", 1, "--out", solo).returncode == 0
    for folder, alone in zip(seeds, (tiny_run, solo), strict=True):
        numbers, expected = summary(folder), summary(alone)
        assert numbers["config"] == expected["config"]
        for name in ("elbo", "log_likelihood", "rate", "distortion"):
            assert numbers[name] == pytest.approx(expected[name], abs=1e-3)
        assert {path.name for path in folder.rglob("*")} == {path.name for path in alone.rglob("*")}
        assert load_run(folder).config.seed == load_run(alone).config.seed
    before = [untimed(folder) for folder in seeds]

    # Ended after the fits, one of them with a damaged last checkpoint.
    for folder in seeds:
        (folder / "summary.json").unlink()
    (seeds[1] / "checkpoints" / "step-000000009.safetensors").write_bytes(b"damaged")
    refused(command("fit", *TINY, "--seeds", 2, "--out", seeds[0]), "exists", "--resume")
    assert inside("fit", *TINY, "--seeds", 2, "--out", seeds[0], "--resume").returncode == 0
    assert [untimed(folder) for folder in seeds] == before

    # One of the runs is finished: only the other one is fitted.
    shutil.rmtree(seeds[0])
    content = tree(seeds[1])
    again = inside("fit", *TINY, "--seeds", 2, "--out", seeds[0], "--resume")
    assert again.returncode == 0
    assert f"{seeds[1]} is finished" in again.stdout
    assert tree(seeds[1]) == content
    assert summary(seeds[0])["log_likelihood"] == pytest.approx(before[0][0]["log_likelihood"], abs=1e-3)


def test_compare_fits_seeds_together_and_reuses_runs(
    fitted: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row of `standard` is the mean over both seeds, whose runs exist."""
    monkeypatch.setattr(subprocess, "Popen", PopenInProcess)
    shutil.copytree(fitted[0], tmp_path / "out" / "standard")
    shutil.copytree(fitted[1], tmp_path / "out" / "standard-seed1")
    result = inside("compare", "--priors", "standard", "laplace", "--seeds", 2, *TINY, "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert [line for line in result.stdout.splitlines() if line.startswith(str(tmp_path / "out" / "standard"))] == []
    rows = {row["name"]: row for row in json.loads((tmp_path / "out" / "comparison.json").read_text())}
    found = {}
    for name, row in rows.items():
        folders = (tmp_path / "out" / name, tmp_path / "out" / f"{name}-seed1")
        found[name] = values = [summary(folder)["log_likelihood"] for folder in folders]
        assert row["log_likelihood"] == pytest.approx(sum(values) / 2)
        assert row["seed_spread"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    best, worst = sorted(rows.values(), key=lambda row: row["below_best"])
    below = [a - b for a, b in zip(found[best["name"]], found[worst["name"]], strict=True)]
    assert best["below_best_seed_se"] == 0.0
    assert worst["below_best_seed_se"] == pytest.approx(abs(below[0] - below[1]) / 2)


def test_invalid_numbers_of_seeds_are_rejected(tmp_path: Path, refused: Callable[..., None]) -> None:
    refused(command("fit", *TINY, "--seeds", 0, "--out", tmp_path / "run"), "--seeds is 0", "at least 1")
    assert not (tmp_path / "run").exists()
