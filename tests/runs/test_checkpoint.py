"""Checkpoints are written whole or not at all, whatever goes wrong within a save."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from helpers.bits import assert_same
from helpers.checkpoints import state
from helpers.fixtures import Promised

from pyro_vae.runs import checkpoint


def test_a_state_comes_back_exactly(path: Path) -> None:
    before = state()
    checkpoint.save(path, before)
    assert_same(checkpoint.load(path), before)
    assert os.listdir(path.parent) == [path.name]


def test_other_tools_read_the_tensors(path: Path) -> None:
    """The file is in the safetensors format, digest and all."""
    before = state()
    checkpoint.save(path, before)
    found = safetensors.torch.load_file(path)
    assert any(torch.equal(tensor, before["svi"]["parameters"]["encoder.weight"]) for tensor in found.values())


def test_the_new_state_replaces_the_old(path: Path) -> None:
    checkpoint.save(path, {"epoch": 1, "old": True})
    checkpoint.save(path, {"epoch": 2})
    assert checkpoint.load(path) == {"epoch": 2}


def test_a_state_that_cannot_be_written_leaves_the_old_file(path: Path) -> None:
    checkpoint.save(path, {"epoch": 1})
    before = path.read_bytes()
    for odd in (lambda: None, {1, 2}, 1j, b"bytes"):
        with pytest.raises(TypeError, match="tensors and plain values, not"):
            checkpoint.save(path, {"epoch": 2, "odd": odd})
        assert path.read_bytes() == before
        assert os.listdir(path.parent) == [path.name]


# A fault at each point of a save, as an exception and as the end of the process


class Fault(BaseException):
    """What goes wrong; as little an Exception as Ctrl-C is."""


def inject(point: str, fail: Callable[[], None], patch: pytest.MonkeyPatch) -> None:
    """Make the next save fail at a point of it."""
    write, sync, replace, syncs = Path.write_bytes, os.fsync, os.replace, []

    def partly(path: Path, content: bytes) -> int:
        share = {"open": None, "quarter": 1, "half": 2, "three quarters": 3, "flush": 4}.get(point, 0)
        if share is None:
            fail()
        if share == 0:
            return write(path, content)
        write(path, content[: len(content) * share // 4])
        fail()
        return 0

    def failing_sync(handle: int) -> None:
        syncs.append(handle)
        if point == ("sync of the file" if len(syncs) == 1 else "sync of the folder"):
            fail()
        sync(handle)

    def failing_replace(old: Path, new: Path) -> None:
        if point == "replace":
            fail()
        replace(old, new)

    patch.setattr(Path, "write_bytes", partly)
    patch.setattr(os, "fsync", failing_sync)
    patch.setattr(os, "replace", failing_replace)


POINTS = ("open", "quarter", "half", "three quarters", "flush", "sync of the file", "replace", "sync of the folder")


def raising() -> None:
    raise Fault


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("point", POINTS)
def test_an_exception_within_a_save(
    point: str, there: bool, path: Path, monkeypatch: pytest.MonkeyPatch, promised: Promised
) -> None:
    if there:
        checkpoint.save(path, {"epoch": 1})
    with monkeypatch.context() as patch:
        inject(point, raising, patch)
        with pytest.raises(Fault):
            checkpoint.save(path, {"epoch": 2, "weights": torch.randn(1000)})
    last = point == "sync of the folder"  # the new file is in place, and whole
    assert os.listdir(path.parent) == ([path.name] if there or last else [])
    if there or last:
        assert checkpoint.load(path)["epoch"] == (2 if last else 1)
    promised("an exception within a save has left the old checkpoint, or none")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # Python 3.12 on fork
@pytest.mark.parametrize("point", POINTS)
def test_a_process_that_ends_within_a_save(
    point: str, path: Path, monkeypatch: pytest.MonkeyPatch, promised: Promised
) -> None:
    checkpoint.save(path, {"epoch": 1})
    child = os.fork()
    if not child:
        inject(point, lambda: os._exit(7), monkeypatch)
        checkpoint.save(path, {"epoch": 2, "weights": torch.ones(1000)})
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert checkpoint.load(path)["epoch"] == (2 if point == "sync of the folder" else 1)
    checkpoint.save(path, {"epoch": 3})  # what was left behind is in nobody's way
    assert checkpoint.load(path)["epoch"] == 3
    promised("a process that ended within a save has left a whole checkpoint")


def test_the_file_is_on_disk_before_its_name_and_its_name_before_the_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No test cuts the power; that the file itself is synced, and then the folder, is what a cut depends on."""
    sync, replace, done = os.fsync, os.replace, []

    def noted_sync(handle: int) -> None:
        done.append(os.fstat(handle).st_ino)
        sync(handle)

    def noted_replace(old: Path, new: Path) -> None:
        done.append("replace")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_replace)
    checkpoint.save(path, {"epoch": 1})
    assert done == [path.stat().st_ino, "replace", path.parent.stat().st_ino]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError(13, "Permission denied")])
def test_a_disk_that_is_full_or_read_only(error: OSError, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(path, {"epoch": 1})

    def full() -> None:
        raise error

    with monkeypatch.context() as patch:
        inject("half", full, patch)
        with pytest.raises(type(error), match=error.strerror):
            checkpoint.save(path, {"epoch": 2})
    assert checkpoint.load(path) == {"epoch": 1}
    assert os.listdir(path.parent) == [path.name]
