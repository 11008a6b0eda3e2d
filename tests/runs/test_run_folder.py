from __future__ import annotations

import json
import math
import multiprocessing
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyro_vae.runs import RunFolder, RunFolderError

CONFIG = {"prior": "standard", "latent_dim": 50, "seed": 0, "epochs": None}


def tree(path: Path) -> dict[str, bytes | None]:
    """Return every file's bytes, and None for every folder."""
    return {str(p.relative_to(path)): p.read_bytes() if p.is_file() else None for p in sorted(path.rglob("*"))}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Return a run of three epochs in a folder where somebody has left notes."""
    folder = RunFolder(tmp_path / "run")
    folder.claim(CONFIG)
    for epoch in range(3):
        folder.append_metrics({"epoch": epoch, "elbo": -10.0 / (epoch + 1)})
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


def epochs(folder: RunFolder) -> list[int]:
    return [line["epoch"] for line in folder.metrics()]


# Claiming a folder


def test_a_new_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "today" / "first")
    folder.claim(CONFIG)
    assert json.loads(folder.config_path.read_text()) == CONFIG
    assert tree(folder.path).keys() == {".lock", "config.json", "checkpoints"}
    assert not folder.finished


@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}])
def test_an_empty_folder_is_as_good_as_none(flags: dict[str, bool], tmp_path: Path) -> None:
    RunFolder(tmp_path).claim(CONFIG, **flags)
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG


def test_an_existing_run_is_refused_and_untouched(folder: RunFolder) -> None:
    before = tree(folder.path)
    with pytest.raises(RunFolderError, match=re.escape(f"{folder.path} exists; add --resume or --overwrite")):
        folder.claim({**CONFIG, "seed": 1})
    assert tree(folder.path) == before


@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}, {"resume": True, "overwrite": True}])
def test_a_folder_of_other_things_is_refused_and_untouched(flags: dict[str, bool], tmp_path: Path) -> None:
    # It holds names like ours, which overwriting would remove.
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "thesis.png").write_bytes(b"mine")
    (tmp_path / "summary.json").write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(RunFolderError, match=re.escape(f"{tmp_path} exists and is no run folder")):
        RunFolder(tmp_path).claim(CONFIG, **flags)
    assert tree(tmp_path) == before


def test_overwrite_removes_our_files_alone(folder: RunFolder) -> None:
    other = {**CONFIG, "seed": 1}
    folder.claim(other, overwrite=True)
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
def test_a_kill_while_a_run_is_replaced_leaves_one_that_goes_on(
    point: int, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either all epochs of its checkpoints, or no checkpoint at all; never one that looks finished without them."""
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
            RunFolder(folder.path).claim(CONFIG, overwrite=True)
    again = RunFolder(folder.path)
    again.claim(CONFIG, resume=True)
    left = list(again.checkpoints.iterdir())
    assert again.finished == (point == 0)
    assert bool(left) == (point < 2)
    again.keep_metrics(3 if left else 0)


def test_a_run_under_evaluation_is_not_replaced(folder: RunFolder) -> None:
    folder._lock.release()
    evaluation = RunFolder(folder.path).evaluation
    evaluation.lock()
    with pytest.raises(RunFolderError, match="evaluation is being written by another process"):
        RunFolder(folder.path).claim(CONFIG, overwrite=True)
    assert epochs(folder) == [0, 1, 2]


def test_resume_with_the_same_configuration_keeps_everything(folder: RunFolder) -> None:
    before = tree(folder.path)
    folder.claim(CONFIG, resume=True)
    assert tree(folder.path) == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"seed": 1, "latent_dim": 2}, "latent_dim, seed"),
        ({"epochs": 5}, "epochs"),
        ({"beta": 2.0}, "beta"),  # a flag that the saved run does not know
    ],
)
def test_resume_with_another_configuration_names_what_changed(
    changes: dict[str, Any], named: str, folder: RunFolder
) -> None:
    before = tree(folder.path)
    with pytest.raises(RunFolderError, match=f"was started with another {named};"):
        folder.claim({**CONFIG, **changes}, resume=True)
    assert tree(folder.path) == before


def test_resume_without_a_saved_flag_names_it(folder: RunFolder) -> None:
    fewer = {name: value for name, value in CONFIG.items() if name != "latent_dim"}
    with pytest.raises(RunFolderError, match="was started with another latent_dim;"):
        folder.claim(fewer, resume=True)


@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}])
@pytest.mark.parametrize("below", ["run", "runs/run"])
def test_a_path_below_a_file_cannot_be_written(below: str, flags: dict[str, bool], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    path = tmp_path / "file" / below
    with pytest.raises(RunFolderError, match=re.escape(f"{path} cannot be written (")):
        RunFolder(path).claim(CONFIG, **flags)
    assert tree(tmp_path) == {"file": b"mine"}


@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}])
def test_a_file_is_no_run_folder(flags: dict[str, bool], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunFolderError, match="file exists and is no run folder"):
        RunFolder(tmp_path / "file").claim(CONFIG, **flags)
    assert tree(tmp_path) == {"file": b"mine"}


def holding(path: Path, ready: Any, leave: Any) -> None:
    folder = RunFolder(path)
    folder.claim(CONFIG, resume=True)
    ready.set()
    leave.wait()


@pytest.mark.parametrize("ended", ["killed", "done"])
def test_two_processes_do_not_write_to_one_folder(ended: str, tmp_path: Path, promised: Callable[[str], None]) -> None:
    context = multiprocessing.get_context("spawn")
    ready, leave = context.Event(), context.Event()
    other = context.Process(target=holding, args=(tmp_path / "run", ready, leave), daemon=True)
    other.start()
    assert ready.wait(60)
    before = tree(tmp_path)
    for flags in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(RunFolderError, match=r"being written by another process|add --resume or --overwrite"):
            RunFolder(tmp_path / "run").claim(CONFIG, **flags)
        assert tree(tmp_path) == before
    other.kill() if ended == "killed" else leave.set()
    other.join()
    RunFolder(tmp_path / "run").claim(CONFIG, resume=True)  # the lock went with the process, however that ended
    promised("a second process on a run folder refused, and let in when the first had ended")


@pytest.mark.parametrize("name", ["checkpoints", "figures", "evaluation", "metrics.jsonl", "summary.json", ".lock"])
def test_nothing_is_written_through_a_link(name: str, tmp_path: Path) -> None:
    """A run folder from somebody else may hold links to places outside it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine")
    folder = RunFolder(tmp_path / "run")
    folder.claim(CONFIG)
    path = folder.path / name
    path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
    path.symlink_to(outside if "." not in name else outside / "file")
    for flags in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(RunFolderError, match=re.escape(f"{path} is a symbolic link")):
            RunFolder(folder.path).claim(CONFIG, **flags)
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
def test_a_name_is_a_name(kind: str, tmp_path: Path, promised: Callable[[str], None]) -> None:
    runs = tmp_path / "runs"
    RunFolder(runs / NAMES[kind]).claim(CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert [path.name for path in runs.iterdir()] == [NAMES[kind]]
    assert RunFolder(runs / NAMES[kind]).config() == CONFIG
    promised("an odd name of a run folder is that folder and nothing else")


@pytest.mark.parametrize("name", ["x" * 256, "a/" * 3000, "zero\0byte"])
def test_a_name_that_no_folder_can_have(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be written|null byte"):
        RunFolder(tmp_path / name).claim(CONFIG)
    assert list(tmp_path.iterdir()) == []


def test_a_kill_before_there_was_a_configuration_is_no_run_to_lose(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in (".lock", ".unfinished-12-config.json"):
        (run / name).write_bytes(b"{")
    RunFolder(run).claim(CONFIG)
    assert tree(run).keys() == {".lock", "config.json", "checkpoints"}


def test_what_a_kill_left_unfinished_is_removed(folder: RunFolder) -> None:
    before = tree(folder.path)
    for place in (folder.path, folder.path / "figures"):
        (place / ".unfinished-123-scores.nc").write_bytes(b"ha")
    again = RunFolder(folder.path)
    folder._lock.release()
    again.claim(CONFIG, resume=True)
    assert tree(folder.path) == before


@pytest.mark.parametrize("content", ["", "{", "[1]", "3", "\0\1", "[" * 100_000, '"text"'])
def test_a_damaged_configuration_is_named(content: str, folder: RunFolder) -> None:
    folder.config_path.write_text(content)
    with pytest.raises(RunFolderError, match=re.escape(f"{folder.config_path} is damaged")):
        folder.claim(CONFIG, resume=True)


# Metrics


def test_metrics_come_back_as_written(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.metrics() == []
    lines = [
        {"epoch": 0, "elbo": -1 / 3, "seconds": 1e-300},
        {"epoch": 1, "elbo": None, "name": "two\nlines"},
    ]
    for line in lines:
        folder.append_metrics(line)
    assert folder.metrics() == lines


@pytest.mark.parametrize("cut", [1, 8, 10, 23])
def test_a_last_line_cut_short_is_left_out(cut: int, folder: RunFolder) -> None:
    line = '{"epoch": 3, "elbo": -2.5}'
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write(line[:cut])
    assert epochs(folder) == [0, 1, 2]


def test_a_number_cut_short_is_not_taken_for_a_line(folder: RunFolder) -> None:
    # All but the line feed: what is there reads as JSON, and the kill may have come before the rest.
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "elbo": -2.5}')
    assert epochs(folder) == [0, 1, 2]


@pytest.mark.parametrize("line", ["{half a line}", "{}", "3", '{"epoch": null}', '{"epoch": "a"}', "[" * 100_000])
def test_a_damaged_line_is_named(line: str, folder: RunFolder) -> None:
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(RunFolderError, match=r"metrics.jsonl is damaged"):
        folder.metrics()


def test_each_epoch_is_there_once_after_a_resume(folder: RunFolder) -> None:
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "el')
    folder.keep_metrics(1)  # the last checkpoint was written after one epoch
    for epoch in (1, 2, 3):
        folder.append_metrics({"epoch": epoch, "elbo": -1.0})
    assert epochs(folder) == [0, 1, 2, 3]
    assert [line["elbo"] for line in folder.metrics()] == [-10.0, -1.0, -1.0, -1.0]


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_keep_metrics_drops_later_epochs_alone(kept: int, folder: RunFolder) -> None:
    before = folder.metrics()
    folder.keep_metrics(kept)
    assert folder.metrics() == before[:kept]


@pytest.mark.parametrize("lines", [[], [0, 1], [0, 1, 3], [0, 1, 1, 2], [1, 0, 2]])
def test_epochs_that_are_missing_are_not_passed_over(lines: list[int], tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for epoch in lines:
        folder.append_metrics({"epoch": epoch})
    before = tree(tmp_path)
    with pytest.raises(RunFolderError, match="does not hold each of the first 3 epochs once"):
        folder.keep_metrics(3)
    assert tree(tmp_path) == before


def test_keep_metrics_of_a_run_that_wrote_none(tmp_path: Path) -> None:
    RunFolder(tmp_path).keep_metrics(0)
    assert RunFolder(tmp_path).metrics() == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_metrics_that_are_not_finite_are_written_as_null(value: float, folder: RunFolder) -> None:
    folder.append_metrics({"epoch": 3, "elbo": value, "objective": -1.5})
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
def test_what_json_cannot_hold_leaves_the_old_file(
    values: dict[str, Any], error: type[Exception], folder: RunFolder
) -> None:
    before = tree(folder.path)
    with pytest.raises(error, match="JSON"):
        folder.write_json("summary.json", values)
    assert tree(folder.path) == before  # no temporary file either


def test_a_kill_before_the_new_file_is_whole_leaves_the_old_one(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        folder.write_json("summary.json", {"elbo": -2.0})
    assert json.loads((folder.path / "summary.json").read_text()) == {"elbo": -3.0}


def test_the_summary_ends_a_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.claim(CONFIG)
    assert not folder.finished
    folder.write_json("summary.json", {"elbo": -3.0})
    assert folder.finished
    assert json.loads((tmp_path / "summary.json").read_text()) == {"elbo": -3.0}
