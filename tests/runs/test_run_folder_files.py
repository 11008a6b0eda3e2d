"""The files of a run folder: metrics line by line, and JSON files written atomically."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from helpers.calls import TINY, inside
from helpers.run_folders import CONFIG, epochs, tree

from pyro_vae.config import Config
from pyro_vae.runs import Folder, RunFolder, RunFolderError

# Fields added by the last version.
ADDED = {"splits", "depth", "width", "optimizer", "ema"}

# Metrics


def test_metrics_round_trip(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.metrics() == []
    lines = [
        {"epoch": 0, "elbo": -1 / 3, "seconds": 1e-300},
        {"epoch": 1, "elbo": None, "name": "two\nlines"},
    ]
    for line in lines:
        folder.append_epoch(line)
    assert folder.metrics() == lines


@pytest.mark.parametrize("cut", [1, 8, 10, 23])
def test_truncated_last_line_is_ignored(cut: int, folder: RunFolder) -> None:
    line = '{"epoch": 3, "elbo": -2.5}'
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write(line[:cut])
    assert epochs(folder) == [0, 1, 2]


def test_line_without_a_line_feed_is_ignored(folder: RunFolder) -> None:
    # All except the line feed: the text is valid JSON, but it may be cut within a number.
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "elbo": -2.5}')
    assert epochs(folder) == [0, 1, 2]


@pytest.mark.parametrize("line", ["{half a line}", "{}", "3", '{"epoch": null}', '{"epoch": "a"}', "[" * 100_000])
def test_damaged_line_is_named(line: str, folder: RunFolder) -> None:
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(RunFolderError, match=r"metrics.jsonl is damaged"):
        folder.metrics()


def test_each_epoch_occurs_once_after_a_resume(folder: RunFolder) -> None:
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "el')
    folder.truncate_metrics(1)  # the last checkpoint was written after one epoch
    for epoch in (1, 2, 3):
        folder.append_epoch({"epoch": epoch, "elbo": -1.0})
    assert epochs(folder) == [0, 1, 2, 3]
    assert [line["elbo"] for line in folder.metrics()] == [-10.0, -1.0, -1.0, -1.0]


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_truncate_metrics_drops_only_later_epochs(kept: int, folder: RunFolder) -> None:
    before = folder.metrics()
    folder.truncate_metrics(kept)
    assert folder.metrics() == before[:kept]


@pytest.mark.parametrize("lines", [[], [0, 1], [0, 1, 3], [0, 1, 1, 2], [1, 0, 2]])
def test_missing_epochs_are_reported(lines: list[int], tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for epoch in lines:
        folder.append_epoch({"epoch": epoch})
    before = tree(tmp_path)
    with pytest.raises(RunFolderError, match="must contain each of the first 3 epochs once"):
        folder.truncate_metrics(3)
    assert tree(tmp_path) == before


def test_truncate_metrics_of_a_run_without_metrics(tmp_path: Path) -> None:
    RunFolder(tmp_path).truncate_metrics(0)
    assert RunFolder(tmp_path).metrics() == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nonfinite_metrics_are_written_as_null(value: float, folder: RunFolder) -> None:
    folder.append_epoch({"epoch": 3, "elbo": value, "objective": -1.5})
    assert folder.metrics()[-1] == {"epoch": 3, "elbo": None, "objective": -1.5}


# JSON files


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"elbo": math.nan}, ValueError),
        ({"iwae": {"1": -3.0, "2": math.inf}}, ValueError),
        ({"elbo": -2.0, "scores": [-math.inf]}, ValueError),
        ({"elbo": -2.0, "path": Path("x")}, TypeError),
    ],
)
def test_unsupported_json_value_leaves_the_old_file(
    values: dict[str, Any], error: type[Exception], folder: RunFolder
) -> None:
    before = tree(folder.path)
    with pytest.raises(error, match="JSON"):
        folder.write_json("summary.json", values)
    assert tree(folder.path) == before  # no temporary file either


def test_interrupted_write_leaves_the_old_file(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        folder.write_json("summary.json", {"elbo": -2.0})
    assert json.loads((folder.path / "summary.json").read_text()) == {"elbo": -3.0}


def test_summary_marks_a_run_as_finished(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.create(CONFIG)
    assert not folder.finished
    folder.write_json("summary.json", {"elbo": -3.0})
    assert folder.finished
    assert json.loads((tmp_path / "summary.json").read_text()) == {"elbo": -3.0}


def test_run_of_an_earlier_version_is_resumed(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its configuration lacks fields added since; it continues from its checkpoint to the same end."""
    older = tmp_path / "older"
    written = Config.to_json
    with monkeypatch.context() as patch:
        patch.setattr(Config, "to_json", lambda self: {k: v for k, v in written(self).items() if k not in ADDED})
        assert inside("fit", *TINY, "--out", older).returncode == 0
    assert not ADDED & json.loads((older / "config.json").read_text()).keys()
    (older / "summary.json").unlink()
    newest = max((older / "checkpoints").iterdir())
    newest.unlink()  # leaves steps to take
    result = inside("fit", *TINY, "--out", older, "--resume")
    assert result.returncode == 0, result.stderr
    found, expected = (json.loads((path / "summary.json").read_text()) for path in (older, run))
    assert found["log_likelihood"] == expected["log_likelihood"]


def test_file_that_is_hard_linked_as_the_lock_keeps_its_content(tmp_path: Path) -> None:
    """Many versions of filelock would empty it. A link to an empty file, as in a backup with links, does no harm."""
    precious, empty = tmp_path / "precious", tmp_path / "empty"
    precious.write_text("content")
    empty.touch()
    for file in (precious, empty):
        (tmp_path / f"run-{file.name}").mkdir()
        os.link(file, tmp_path / f"run-{file.name}" / ".lock")
    with pytest.raises(RunFolderError, match=r"\.lock is another name"):
        Folder(tmp_path / "run-precious").lock()
    assert precious.read_text() == "content"
    Folder(tmp_path / "run-empty").lock()


def test_folders_that_cannot_be_opened_are_written_without_a_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, where only files that are open for writing can be synced."""
    opened = os.open

    def refusing(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if Path(path).is_dir() or not flags & (os.O_RDWR | os.O_WRONLY):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refusing)
    Folder(tmp_path).write_json("numbers.json", {"a": 1})
    monkeypatch.undo()
    assert (tmp_path / "numbers.json").read_text() == '{\n  "a": 1\n}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["numbers.json"]
