"""Runs that were interrupted are shown as such."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.calls import inside

pytestmark = pytest.mark.usefixtures("short_annealing")


def test_unfinished_run_is_marked(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """After two of three epochs: in the table, on stderr, in summary.json, and in a comparison."""
    finished = tmp_path / "finished"
    assert inside("evaluate", run).returncode == 0
    (run / "evaluation").rename(finished)
    assert json.loads((finished / "summary.json").read_text())["finished"] is True
    assert "unfinished" not in caplog.text
    (run / "summary.json").unlink()
    max((run / "checkpoints").iterdir()).unlink()
    result = inside("evaluate", run)
    assert result.returncode == 0, result.stderr
    assert f"{run.name} (unfinished)" in result.stdout
    assert f"{run} is unfinished: epoch 2 of 3." in caplog.text
    assert json.loads((run / "evaluation" / "summary.json").read_text())["finished"] is False
    caplog.clear()
    assert inside("sample", run).returncode == 0
    assert f"{run} is unfinished: epoch 2 of 3." in caplog.text
    compared = inside("compare", finished, run / "evaluation", "--out", tmp_path / "out")
    assert compared.returncode == 2
    assert f"{run / 'evaluation'} belongs to an unfinished run" in compared.stderr
    alone = inside("compare", finished, run, "--out", tmp_path / "out")
    assert alone.returncode == 2
    assert "is not a finished run: it has no summary.json" in alone.stderr
