"""Checkpoints: written whole or not at all, loaded only undamaged, and read as data alone."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from helpers.bits import assert_same

from pyro_vae.errors import CheckpointError
from pyro_vae.runs import checkpoint

Promised = Callable[[str], None]


def state() -> dict[str, Any]:
    shared = torch.randn(3, 2)
    return {
        "svi": {
            "parameters": {"encoder.weight": shared, "bias": torch.randn(4, dtype=torch.float32)},
            "modules": [{"encoder.weight": shared, "count": torch.tensor(7)}],
            "optimizer": {
                "state": {0: {"step": torch.tensor(7.0)}, 1: {}},
                "groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0, 1]}],
            },
        },
        "rng": {"cpu": torch.get_rng_state(), "cuda": []},
        "mask": torch.tensor([True, False]),
        "transposed": torch.arange(6).view(2, 3).T,
        "expanded": torch.ones(2).expand(3, 2),
        "extremes": torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 5e-324, 1e308], dtype=torch.float64),
        "none": torch.zeros(0, 5),
        "epoch": 2**40,
        "best": {"elbo": -math.inf, "epoch": -1, "parameters": None},
        "floats": [0.1, 1e-300, -0.0, math.nan],
        "flag": True,
        "name": 'naïve "sha256": "' + "0" * 64 + '"',
        "": {},
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "step-000000001.safetensors"


def refused(path: Path, words: str = "") -> None:
    with pytest.raises(CheckpointError, match=re.escape(str(path))) as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)
    assert words in str(caught.value)


# Written whole or not at all


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


# Damage


def test_no_flipped_bit_goes_unseen(path: Path, promised: Promised) -> None:
    checkpoint.save(path, state())
    whole = path.read_bytes()
    places = random.Random(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    for trial in range(2000):
        at = places.randrange(8 * (header if trial % 2 else len(whole)))  # every other one in the header
        flipped = bytearray(whole)
        flipped[at // 8] ^= 1 << at % 8
        path.write_bytes(flipped)
        refused(path)
    promised("2,000 of 2,000 checkpoints with a flipped bit refused")


def test_every_truncation_is_refused(path: Path, promised: Promised) -> None:
    checkpoint.save(path, state())
    whole = path.read_bytes()
    lengths = {0, 1, 2, 7, 8, 9, len(whole) - 1, *range(0, len(whole), 50)}
    for length in sorted(lengths):
        path.write_bytes(whole[:length])
        refused(path)
    promised(f"{len(lengths)} of {len(lengths)} truncated checkpoints refused")


def test_blocks_of_zeros_and_what_is_appended(path: Path) -> None:
    checkpoint.save(path, state())
    whole = path.read_bytes()
    places = random.Random(1)
    for _ in range(200):
        start, length = places.randrange(len(whole)), places.choice([1, 8, 64, 512])
        block = whole[start : start + length]
        changed = whole[:start] + bytes(len(block)) + whole[start + length :]
        path.write_bytes(changed)
        if changed != whole:
            refused(path)
    path.write_bytes(whole + b"\0")
    refused(path)


@pytest.mark.parametrize(
    "content",
    [
        b"\n",
        b"hello\n",
        b"{}",
        b'{"format": 1}',
        b"<!DOCTYPE html>\n<html>\n</html>\n",
        b"\x00" * 1000,
        b"\x80\x02}q\x00.",
        b"PK\x03\x04",
        b"\xff" * 8 + b"{}",
    ],
)
def test_files_that_are_something_else(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    refused(path, "not a checkpoint")


def test_a_pipe_is_not_waited_for(path: Path) -> None:
    os.mkfifo(path)
    refused(path, "not a checkpoint")


def test_a_file_larger_than_any_memory_is_not_read(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**42)
    refused(path, "not a checkpoint")


def test_a_missing_file_and_a_folder_in_its_place(path: Path) -> None:
    refused(path, "No such file")
    path.mkdir()
    refused(path, "cannot be read")


# Files that somebody has made, with a digest that is right


def signed(text: str, tensors: bytes = b"", header: str = "") -> bytes:
    """Return a file of a header of one's own making, under its true digest."""
    blank = "0" * 64
    metadata = json.dumps(text.replace("DIGEST", blank))
    content = f'{{"__metadata__":{{"pyro_vae":{metadata}}}{header}}}'.encode()
    content = len(content).to_bytes(8, "little") + content + tensors
    return content.replace(blank.encode(), hashlib.sha256(content).hexdigest().encode(), 1)


GOOD = '{"format": 2, "sha256": "DIGEST", "state": {"dict": [["x", {"tensor": "0"}]]}}'
CLAIMS = {
    "a tensor of 10 GB": ',"0":{"dtype":"U8","shape":[10000000000],"data_offsets":[0,10000000000]}',
    "10 GB in four bytes": ',"0":{"dtype":"U8","shape":[100000,100000],"data_offsets":[0,4]}',
    "a shape that overflows": ',"0":{"dtype":"F32","shape":[4294967296,4294967296,2],"data_offsets":[0,4]}',
    "offsets that run backwards": ',"0":{"dtype":"U8","shape":[4],"data_offsets":[4,0]}',
    "no tensor of that name": ',"1":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}',
    "a type that is none": ',"0":{"dtype":"object","shape":[4],"data_offsets":[0,4]}',
}


def test_a_file_signed_by_hand_is_read(path: Path) -> None:
    """So that each refusal below is for what is wrong with it."""
    path.write_bytes(signed(GOOD, b"abcd", ',"0":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}'))
    assert checkpoint.load(path)["x"].tolist() == list(b"abcd")


@pytest.mark.parametrize("claim", CLAIMS)
def test_sizes_are_not_taken_on_trust(claim: str, path: Path) -> None:
    path.write_bytes(signed(GOOD, b"abcd", CLAIMS[claim]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(path, "not a checkpoint")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


@pytest.mark.parametrize(
    "text",
    [
        '{"format": 2, "sha256": "DIGEST"}',
        '{"format": 2, "sha256": "DIGEST", "state": ' + 50_000 * '{"list": [' + 50_000 * "]}" + "}",
        '{"format": 2, "sha256": "DIGEST", "state": {"function": ["os.system"]}}',
        '{"format": 2, "sha256": "DIGEST", "state": {"dict": [[{}, 1]]}}',
        '{"format": 2, "sha256": "DIGEST", "state": {}}',
        '{"format": 2, "sha256": "DIGEST", "state": ',
        '{"format": ' + 5000 * "9" + ', "sha256": "DIGEST", "state": {}}',
    ],
)
def test_trees_that_are_none(text: str, path: Path) -> None:
    path.write_bytes(signed(text))
    refused(path)


def test_a_format_of_the_future_is_named(path: Path) -> None:
    path.write_bytes(signed('{"format": 3, "sha256": "DIGEST", "state": {"dict": []}}'))
    refused(path, "format 3")
