"""Claiming a run folder: creating, resuming, replacing, and rejection without changes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.run_folders import CONFIG, tree

from pyro_vae.runs import RunFolder, RunFolderError


def test_new_folder_is_created_with_its_parents(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "today" / "first")
    folder.create(CONFIG)
    assert json.loads(folder.config_path.read_text()) == CONFIG
    assert tree(folder.path).keys() == {".lock", "config.json", "checkpoints"}
    assert not folder.finished


@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}])
def test_empty_folder_is_accepted(flags: dict[str, bool], tmp_path: Path) -> None:
    RunFolder(tmp_path).create(CONFIG, **flags)
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG


def test_existing_run_is_rejected_and_unchanged(folder: RunFolder) -> None:
    before = tree(folder.path)
    with pytest.raises(RunFolderError, match=re.escape(f"{folder.path} exists; add --resume or --overwrite")):
        folder.create(CONFIG)
    with pytest.raises(RunFolderError, match="exists with different values of seed; choose another --out"):
        folder.create({**CONFIG, "seed": 1})
    assert tree(folder.path) == before


@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}, {"resume": True, "overwrite": True}])
def test_folder_with_other_files_is_rejected_and_unchanged(flags: dict[str, bool], tmp_path: Path) -> None:
    # Some of its names are those of a run folder, which overwriting would remove.
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "thesis.png").write_bytes(b"mine")
    (tmp_path / "summary.json").write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(RunFolderError, match=re.escape(f"{tmp_path} exists and is not a run folder")):
        RunFolder(tmp_path).create(CONFIG, **flags)
    assert tree(tmp_path) == before


def test_overwrite_removes_only_files_of_a_run(folder: RunFolder) -> None:
    other = {**CONFIG, "seed": 1}
    folder.create(other, overwrite=True)
    files = tree(folder.path)
    assert json.loads(files.pop("config.json") or b"") == other
    assert files == {
        ".lock": b"",
        "checkpoints": None,
        "notes.txt": b"mine",
        "thesis": None,
        "thesis/config.json": b"mine too",
    }
    assert not folder.finished


@pytest.mark.parametrize("point", range(4))
def test_interrupted_overwrite_leaves_a_resumable_run(
    point: int, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either with all its epochs and checkpoints or without checkpoints; never finished without them."""
    folder._lock.release()
    removals = {"rmtree": shutil.rmtree, "unlink": Path.unlink}
    done = []

    def killed(how: str) -> Callable[..., None]:
        def remove(path: Path, *args: Any, **kwargs: Any) -> None:
            if len(done) == point:
                raise KeyboardInterrupt
            done.append(path)
            removals[how](path, *args, **kwargs)

        return remove

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed("rmtree"))
        patch.setattr(Path, "unlink", killed("unlink"))
        with pytest.raises(KeyboardInterrupt):
            RunFolder(folder.path).create(CONFIG, overwrite=True)
    again = RunFolder(folder.path)
    again.create(CONFIG, resume=True)
    left = list(again.checkpoints.iterdir())
    assert again.finished == (point == 0)
    assert bool(left) == (point < 2)
    again.truncate_metrics(3 if left else 0)


def test_resume_with_the_same_configuration_keeps_everything(folder: RunFolder) -> None:
    before = tree(folder.path)
    folder.create(CONFIG, resume=True)
    assert tree(folder.path) == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"seed": 1, "latent_dim": 2}, "latent_dim, seed"),
        ({"beta": 2.0}, "beta"),  # a flag that the saved run lacks
    ],
)
def test_resume_with_another_configuration_names_the_changes(
    changes: dict[str, Any], named: str, folder: RunFolder
) -> None:
    before = tree(folder.path)
    with pytest.raises(RunFolderError, match=f"was started with different values of {named};"):
        folder.create({**CONFIG, **changes}, resume=True)
    assert tree(folder.path) == before


def test_resume_may_change_what_does_not_identify_the_run(folder: RunFolder) -> None:
    before = tree(folder.path)
    changed = {**CONFIG, "epochs": 5, "device": "cuda", "data_root": "elsewhere"}
    folder.create(changed, resume=True)
    assert folder.config() == changed
    after = tree(folder.path)
    assert {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} == {"config.json"}


def test_resume_without_a_saved_flag_names_it(folder: RunFolder) -> None:
    fewer = {name: value for name, value in CONFIG.items() if name != "latent_dim"}
    with pytest.raises(RunFolderError, match="was started with different values of latent_dim;"):
        folder.create(fewer, resume=True)


def test_folder_without_a_configuration_is_reused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in (".lock", ".unfinished-12-config.json"):
        (run / name).write_bytes(b"{")
    RunFolder(run).create(CONFIG)
    assert tree(run).keys() == {".lock", "config.json", "checkpoints"}


def test_unfinished_files_are_removed(folder: RunFolder) -> None:
    before = tree(folder.path)
    for place in (folder.path, folder.path / "figures"):
        (place / ".unfinished-123-scores.nc").write_bytes(b"ha")
    again = RunFolder(folder.path)
    folder._lock.release()
    again.create(CONFIG, resume=True)
    assert tree(folder.path) == before


@pytest.mark.parametrize("content", ["", "{", "[1]", "3", "\0\1", "[" * 100_000, '"text"'])
def test_damaged_configuration_is_named(content: str, folder: RunFolder) -> None:
    folder.config_path.write_text(content)
    with pytest.raises(RunFolderError, match=re.escape(f"{folder.config_path} is damaged")):
        folder.create(CONFIG, resume=True)
