from __future__ import annotations

import math
import os
import pickle
import re
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from torch import Tensor

from pyro_vae.infer import checkpoint, schedules
from pyro_vae.infer.checkpoint import CheckpointError


def state() -> dict[str, Any]:
    return {
        "svi": {
            "parameters": {"encoder.weight": torch.randn(3, 2), "bias": torch.randn(4, dtype=torch.float32)},
            "optimizer": {
                "state": {0: {"step": torch.tensor(7.0)}, 1: {}},
                "groups": [{"lr": 0.1, "params": [0, 1]}],
            },
        },
        "rng": {"cpu": torch.get_rng_state(), "cuda": []},
        "mask": torch.tensor([True, False]),
        "transposed": torch.arange(6).view(2, 3).T,
        "extremes": torch.tensor([0.0, -0.0, math.inf, -math.inf, 5e-324, 1e308], dtype=torch.float64),
        "none": torch.zeros(0, 5),
        "epoch": 2**40,
        "best": {"elbo": -math.inf, "epoch": -1, "parameters": None},
        "floats": [0.1, 1e-300, -0.0],
        "flag": True,
        "name": "naïve",
    }


def assert_same(new: Any, old: Any) -> None:
    """Compare to the last bit, type by type: 1, 1.0 and True are not the same."""
    assert type(new) is type(old)
    if isinstance(old, dict):
        assert list(new) == list(old)
        for key in old:
            assert_same(new[key], old[key])
    elif isinstance(old, list):
        assert len(new) == len(old)
        for a, b in zip(new, old, strict=True):
            assert_same(a, b)
    elif isinstance(old, Tensor):
        assert new.dtype == old.dtype
        assert new.numpy().tobytes() == old.numpy().tobytes()  # -0.0 is not 0.0
        assert new.shape == old.shape
    else:
        assert repr(new) == repr(old)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "epoch-000001.pt"


def refused(path: Path) -> None:
    with pytest.raises(CheckpointError, match=re.escape(str(path))) as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)


# Written whole or not at all


def test_a_state_comes_back_exactly(path: Path) -> None:
    before = state()
    checkpoint.save(path, before)
    after = checkpoint.load(path)
    assert_same({name: after[name] for name in before}, before)
    assert os.listdir(path.parent) == [path.name]


def test_the_new_state_replaces_the_old(path: Path) -> None:
    checkpoint.save(path, {"epoch": 1, "old": True})
    checkpoint.save(path, {"epoch": 2})
    after = checkpoint.load(path)
    assert after["epoch"] == 2
    assert "old" not in after


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt(), RuntimeError("cannot")])
@pytest.mark.parametrize("there", [True, False])
def test_a_failed_save_leaves_the_old_file_and_nothing_else(
    there: bool, error: BaseException, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if there:
        checkpoint.save(path, state())
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}

    def half(values: Any, file: BinaryIO) -> None:
        file.write(b"half")
        raise error

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(type(error)):
        checkpoint.save(path, state())
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before


def test_a_state_that_cannot_be_written_leaves_the_old_file(path: Path) -> None:
    checkpoint.save(path, {"epoch": 1})
    before = path.read_bytes()
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        checkpoint.save(path, {"epoch": 2, "function": lambda: None})
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


# Damage


def test_every_truncation_is_refused(path: Path) -> None:
    checkpoint.save(path, state())
    whole = path.read_bytes()
    lengths = {0, 1, 2, 3, 4, len(whole) - 1, *range(0, len(whole), len(whole) // 17)}
    for length in sorted(lengths):
        path.write_bytes(whole[:length])
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
        b"\x80\x02",
        b"\x80\x02}q\x00.",
        b"PK\x03\x04",
        b"X",  # as a pickle, the start of a string whose length is missing
        b"M\x01",
    ],
)
def test_files_that_are_something_else(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    refused(path)


def test_a_missing_file(path: Path) -> None:
    refused(path)


def test_a_folder_in_its_place(path: Path) -> None:
    path.mkdir()
    refused(path)


@pytest.mark.parametrize("content", [{"format": 2, "epoch": 1}, {"format": "1"}, {"format": None}, {"epoch": 1}, {}])
def test_other_formats_are_refused(content: dict[str, Any], path: Path) -> None:
    torch.save(content, path)
    refused(path)


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), 1, None])
def test_what_is_no_state_is_refused(content: Any, path: Path) -> None:
    torch.save(content, path)
    refused(path)


# No code runs


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.canary),)


def plain(payload: Malicious, path: Path) -> None:
    path.write_bytes(pickle.dumps(payload, protocol=2))


def inside(payload: Malicious, path: Path) -> None:
    torch.save({"format": 1, "epoch": 3, "svi": {"parameters": payload}}, path)


@pytest.mark.parametrize("write", [plain, inside])
def test_nothing_in_a_file_is_executed(write: Callable[[Malicious, Path], None], path: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    write(Malicious(canary), path)
    refused(path)
    assert not canary.exists()
    # The payload is live: a loader that trusts the file runs it.
    with suppress(RuntimeError):
        torch.load(path, weights_only=False)
    assert canary.exists()


# Schedules


def test_cosine_falls_from_one_through_a_half_to_zero() -> None:
    factor = schedules.over(schedules.cosine, 10)
    assert factor(0) == 1
    assert factor(5) == pytest.approx(0.5, abs=1e-15)
    assert factor(10) == pytest.approx(0, abs=1e-15)


def test_cosine_is_symmetric_about_its_midpoint() -> None:
    factor = schedules.over(schedules.cosine, 10)
    assert [factor(step) + factor(10 - step) for step in range(11)] == pytest.approx([1] * 11)
    assert sorted(map(factor, range(11)), reverse=True) == [factor(step) for step in range(11)]


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_a_schedule_stays_where_it_ends(name: str) -> None:
    factor = schedules.over(schedules.SCHEDULES[name], 10)
    assert factor(25) == factor(10)


# One step per epoch, and several: a stage must not begin inside an epoch.
@pytest.mark.parametrize("steps_per_epoch", [1, 7])
def test_burda_makes_the_passes_of_the_paper(steps_per_epoch: int) -> None:
    factor = schedules.over(schedules.burda, 3280 * steps_per_epoch)
    factors = [factor(step) for step in range(3280 * steps_per_epoch)]
    assert factors == sorted(factors, reverse=True)
    steps = Counter(factors)
    assert list(steps) == pytest.approx([10 ** (-i / 7) for i in range(8)], rel=1e-12)
    assert list(steps.values()) == [steps_per_epoch * 3**i for i in range(8)]
