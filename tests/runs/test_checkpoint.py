"""Checkpoints are written atomically, whatever fails during a save."""

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


def test_state_round_trips_exactly(path: Path) -> None:
    before = state()
    checkpoint.save(path, before)
    assert_same(checkpoint.load(path), before)
    assert os.listdir(path.parent) == [path.name]


def test_safetensors_reads_the_tensors(path: Path) -> None:
    """The file, including the digest, is in the safetensors format."""
    before = state()
    checkpoint.save(path, before)
    found = safetensors.torch.load_file(path)
    assert any(torch.equal(tensor, before["svi"]["parameters"]["encoder.weight"]) for tensor in found.values())


def test_new_state_replaces_the_old(path: Path) -> None:
    checkpoint.save(path, {"epoch": 1, "old": True})
    checkpoint.save(path, {"epoch": 2})
    assert checkpoint.load(path) == {"epoch": 2}


def test_unsupported_state_leaves_the_old_file(path: Path) -> None:
    checkpoint.save(path, {"epoch": 1})
    before = path.read_bytes()
    for odd in (lambda: None, {1, 2}, 1j, b"bytes"):
        with pytest.raises(TypeError, match="tensors and plain values, not"):
            checkpoint.save(path, {"epoch": 2, "odd": odd})
        assert path.read_bytes() == before
        assert os.listdir(path.parent) == [path.name]


# A fault at each point of a save, raised as an exception or ending the process


class Fault(BaseException):
    """The injected fault; like KeyboardInterrupt, it does not derive from Exception."""


def inject(point: str, fail: Callable[[], None], patch: pytest.MonkeyPatch) -> None:
    """Make the next save fail at the given point."""
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
def test_exception_during_a_save_leaves_a_valid_file(
    point: str, there: bool, path: Path, monkeypatch: pytest.MonkeyPatch, promised: Promised
) -> None:
    if there:
        checkpoint.save(path, {"epoch": 1})
    with monkeypatch.context() as patch:
        inject(point, raising, patch)
        with pytest.raises(Fault):
            checkpoint.save(path, {"epoch": 2, "weights": torch.randn(1000)})
    last = point == "sync of the folder"  # the new file is complete and in place
    assert os.listdir(path.parent) == ([path.name] if there or last else [])
    if there or last:
        assert checkpoint.load(path)["epoch"] == (2 if last else 1)
    promised("an exception during a save leaves the old or the new checkpoint intact, or none if there was none")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # Python 3.12, fork
@pytest.mark.parametrize("point", POINTS)
def test_process_that_ends_during_a_save_leaves_a_valid_file(
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
    checkpoint.save(path, {"epoch": 3})  # leftover files do not interfere
    assert checkpoint.load(path)["epoch"] == 3
    promised("a process that ends during a save leaves the old or the new checkpoint intact")


def test_file_is_synced_before_renaming_and_the_folder_after(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test cuts the power; surviving a power cut depends on syncing the file, then its folder."""
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
def test_full_or_read_only_disk_leaves_the_old_file(
    error: OSError, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(path, {"epoch": 1})

    def full() -> None:
        raise error

    with monkeypatch.context() as patch:
        inject("half", full, patch)
        with pytest.raises(type(error), match=error.strerror):
            checkpoint.save(path, {"epoch": 2})
    assert checkpoint.load(path) == {"epoch": 1}
    assert os.listdir(path.parent) == [path.name]
