"""benchmark.py with tiny settings: every contender is timed, and none is faster than its arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.calls import script


@pytest.mark.slow  # compiles twice
def test_benchmark_compares_every_contender(tmp_path: Path) -> None:
    small = ["--hidden-dim", 10, "--blocks", 2, "--seconds", 0.01, "--batch-sizes", 20, "--num-particles", 1]
    result = script("benchmark", "--measure", "steps", *small, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    (case,) = json.loads((tmp_path / "benchmark.json").read_text())["steps"]
    assert case["contenders"]["hand-written"]["ratio"] == 1.0
    for name, timing in case["contenders"].items():
        assert name in result.stdout
        # A lower bound on the time of a step, however small the machine's share of it.
        assert timing["seconds"] > case["floor_seconds"] > 0
    assert (tmp_path / "benchmark.png").stat().st_size > 5000


@pytest.mark.slow  # compiles twice
def test_benchmark_of_many_fits_is_relative_to_one(tmp_path: Path) -> None:
    small = ["--hidden-dim", 10, "--blocks", 2, "--seconds", 0.01, "--batch-sizes", 100, "--many-fits", 2]
    result = script("benchmark", "--measure", "many", *small, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    two, one = json.loads((tmp_path / "benchmark.json").read_text())["many"]
    assert (two["fits"], one["fits"]) == ("2 in FitMany", "1 by itself")
    assert one["ratio"] == 1.0
    assert two["ratio"] > 0


@pytest.mark.slow  # starts two processes, which compile
def test_benchmark_of_two_processes_is_relative_to_one(tmp_path: Path) -> None:
    small = ["--hidden-dim", 10, "--blocks", 2, "--seconds", 0.01, "--batch-sizes", 20, "--processes", 2]
    result = script("benchmark", "--measure", "scaling", *small, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    rows = {row["case"]: row for row in json.loads((tmp_path / "benchmark.json").read_text())["scaling"]}
    together = ["1 process", "2 fits, one in each", "2 processes", "2 processes, batch 40", "all-reduce"]
    assert list(rows) == ["1 process, 4 shards", "1 process, whole", *together]
    assert all(name in result.stdout and row["seconds"] > 0 for name, row in rows.items())
    # The encoder has 64, 10, 10 and 100 units, the decoder 50, 10, 10 and 64; with the loss, the ELBO and two flags.
    parameters = (64 + 1) * 10 + (10 + 1) * 10 + (10 + 1) * 100 + (50 + 1) * 10 + (10 + 1) * 10 + (10 + 1) * 64
    assert rows["all-reduce"]["bytes"] == 4 * (parameters + 4)
