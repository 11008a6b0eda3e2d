"""One process writes to a run folder, and only to that folder: locks, links and unusual names."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.run_folders import CONFIG, epochs, tree

from pyro_vae.runs import RunFolder, RunFolderError


def test_run_under_evaluation_is_not_replaced(folder: RunFolder) -> None:
    folder._lock.release()
    evaluation = RunFolder(folder.path).evaluation
    evaluation.lock()
    with pytest.raises(RunFolderError, match="evaluation is being written by another process"):
        RunFolder(folder.path).create(CONFIG, overwrite=True)
    assert epochs(folder) == [0, 1, 2]


@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}])
@pytest.mark.parametrize("below", ["run", "runs/run"])
def test_path_below_a_file_is_rejected(below: str, flags: dict[str, bool], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    path = tmp_path / "file" / below
    with pytest.raises(RunFolderError, match=re.escape(f"{path} cannot be written (")):
        RunFolder(path).create(CONFIG, **flags)
    assert tree(tmp_path) == {"file": b"mine"}


@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}])
def test_file_is_not_a_run_folder(flags: dict[str, bool], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunFolderError, match="file exists and is not a run folder"):
        RunFolder(tmp_path / "file").create(CONFIG, **flags)
    assert tree(tmp_path) == {"file": b"mine"}


def hold_run_folder(path: Path, ready: Any, leave: Any) -> None:
    folder = RunFolder(path)
    folder.create(CONFIG, resume=True)
    ready.set()
    leave.wait()


@pytest.mark.parametrize("ended", ["killed", "done"])
def test_second_process_on_a_run_folder_is_rejected(
    ended: str, tmp_path: Path, promised: Callable[[str], None]
) -> None:
    context = multiprocessing.get_context("spawn")
    ready, leave = context.Event(), context.Event()
    other = context.Process(target=hold_run_folder, args=(tmp_path / "run", ready, leave), daemon=True)
    other.start()
    assert ready.wait(60)
    before = tree(tmp_path)
    for flags in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(RunFolderError, match=r"being written by another process|add --resume or --overwrite"):
            RunFolder(tmp_path / "run").create(CONFIG, **flags)
        assert tree(tmp_path) == before
    other.kill() if ended == "killed" else leave.set()
    other.join()
    RunFolder(tmp_path / "run").create(CONFIG, resume=True)  # its lock ended with the process
    promised("a second process on a run folder is rejected until the first has ended")


@pytest.mark.parametrize("name", ["checkpoints", "figures", "evaluation", "metrics.jsonl", "summary.json", ".lock"])
def test_nothing_is_written_through_a_link(name: str, tmp_path: Path) -> None:
    """An untrusted run folder may contain links to paths outside it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine")
    folder = RunFolder(tmp_path / "run")
    folder.create(CONFIG)
    path = folder.path / name
    path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
    path.symlink_to(outside if "." not in name else outside / "file")
    for flags in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(RunFolderError, match=re.escape(f"{path} is a symbolic link")):
            RunFolder(folder.path).create(CONFIG, **flags)
    assert tree(outside) == {"file": b"mine"}


NAMES = {
    "a line feed": "one\ntwo",
    "an escape sequence": "\x1b[31mred",
    "letters from right to left": "\u202erun",
    "umlauts and emoji": "Lauf-äöü-🎲",
    "spaces and quotes": " 'run' \"x\" ",
    "a percent sign and a dollar": "100 %s $HOME $(id)",
    "255 bytes": "x" * 255,
    "a dash in front": "--overwrite",
}


@pytest.mark.parametrize("kind", NAMES)
def test_unusual_names_are_used_literally(kind: str, tmp_path: Path, promised: Callable[[str], None]) -> None:
    runs = tmp_path / "runs"
    RunFolder(runs / NAMES[kind]).create(CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert [path.name for path in runs.iterdir()] == [NAMES[kind]]
    assert RunFolder(runs / NAMES[kind]).config() == CONFIG
    promised("an unusual run folder name is used literally")


@pytest.mark.parametrize("name", ["x" * 256, "a/" * 3000, "zero\0byte"])
def test_impossible_folder_name_is_rejected(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be written|null byte"):
        RunFolder(tmp_path / name).create(CONFIG)
    assert list(tmp_path.iterdir()) == []
