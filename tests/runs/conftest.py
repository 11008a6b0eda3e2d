"""Run folders and checkpoint paths for the tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.run_folders import CONFIG

from pyro_vae.runs import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Return a run of three epochs in a folder that also contains a user's notes."""
    folder = RunFolder(tmp_path / "run")
    folder.create(CONFIG)
    for epoch in range(3):
        folder.append_epoch({"epoch": epoch, "elbo": -10.0 / (epoch + 1)})
    (folder.checkpoints / "step-000000003.safetensors").write_bytes(b"parameters")
    folder.write_json("summary.json", {"elbo": -3.0})
    (folder.path / "scores.nc").write_bytes(b"scores")
    for name in ("figures", "evaluation", "samples"):
        (folder.path / name).mkdir()
        (folder.path / name / "bounds.png").write_bytes(b"picture")
    (folder.path / "notes.txt").write_text("mine")
    (folder.path / "thesis").mkdir()
    (folder.path / "thesis" / "config.json").write_text("mine too")
    return folder


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "step-000000001.safetensors"
