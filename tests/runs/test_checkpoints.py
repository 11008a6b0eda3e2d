"""The checkpoints of a run: the newest valid one is loaded, and enough are kept to roll back."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_vae.errors import CheckpointError
from pyro_vae.runs import Checkpoints, checkpoint

RUN = {"seed": 0, "latent_dim": 50}


def history(folder: Path, run: dict[str, int] = RUN) -> Checkpoints:
    return Checkpoints(folder, run, lambda step: step == 1 or step % 100 == 0)


def state(step: int) -> dict[str, object]:
    return {"number": step, "weights": torch.full((50,), float(step))}


def write(folder: Path, *steps: int) -> Checkpoints:
    """Write all checkpoints, of which `save` would keep only two or three."""
    for step in steps:
        held = {path: path.read_bytes() for path in history(folder).paths().values()}
        history(folder).save(step, state(step))
        for path, content in held.items():
            path.write_bytes(content)
    return history(folder)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damaged", range(6))
def test_newest_valid_checkpoint_is_loaded(
    damaged: int, tmp_path: Path, caplog: pytest.LogCaptureFixture, promised
) -> None:
    steps = [3, 20, 100, 140, 9_999_999_999]  # longer than the width of the step in file names
    found = write(tmp_path, *steps)
    paths = list(found.paths().values())
    for path in paths[5 - damaged :]:
        damage(path)
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        if damaged == 5:
            with pytest.raises(CheckpointError) as caught:
                found.newest()
            assert all(str(path) in str(caught.value) for path in paths)
        else:
            step, values = found.newest()
            assert (step, values["number"]) == (steps[4 - damaged],) * 2
            assert torch.equal(values["weights"], state(step)["weights"])
    assert [record.message.split(" is damaged")[0] for record in caplog.records] == [
        str(path) for path in reversed(paths[5 - damaged :] if damaged < 5 else [])
    ]
    promised("the newest valid checkpoint is loaded, damaged ones are named")


def test_folder_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert history(tmp_path).newest() is None
    assert history(tmp_path / "missing").newest() is None


@pytest.mark.parametrize(
    ("saved", "kept"),
    [
        ([1], [1]),
        ([1, 7], [1, 7]),
        ([1, 7, 30, 31], [1, 30, 31]),  # the first step is a milestone
        ([1, 99, 100, 130, 131], [100, 130, 131]),
        ([1, 100, 200, 300], [200, 300]),
        ([1, 100, 150, 160, 200], [160, 200]),
    ],
)
def test_newest_two_and_newest_milestone_are_kept(saved: list[int], kept: list[int], tmp_path: Path) -> None:
    found = history(tmp_path)
    for step in saved:
        found.save(step, state(step))
    assert list(found.paths()) == kept
    assert found.newest()[0] == saved[-1]
    assert found.newest(milestone=True)[0] == max(step for step in saved if found.is_milestone(step))


def test_swapped_checkpoints_are_detected(tmp_path: Path) -> None:
    first, second = write(tmp_path, 20, 30).paths().values()
    contents = first.read_bytes(), second.read_bytes()
    second.write_bytes(contents[0])
    first.write_bytes(contents[1])
    with pytest.raises(CheckpointError, match=r"of step 20, not of step \d+\..*of step 30, not of step \d+\."):
        history(tmp_path).newest()


def test_checkpoint_of_another_run_is_not_loaded(tmp_path: Path) -> None:
    write(tmp_path, 20)
    with pytest.raises(CheckpointError, match="belongs to another run: its latent_dim is 50"):
        history(tmp_path, {**RUN, "latent_dim": 2}).newest()
    with pytest.raises(CheckpointError, match="belongs to another run: its beta is None"):
        history(tmp_path, {**RUN, "beta": 2}).newest()


def test_unreadable_checkpoint_is_renamed_and_kept(tmp_path: Path) -> None:
    found = write(tmp_path, 20, 30)
    late = found.paths()[30]
    damage(late)
    content = late.read_bytes()
    found.quarantine_after(found.newest()[0])
    assert list(found.paths()) == [20]
    assert (tmp_path / f"unreadable-{late.name}").read_bytes() == content
    found.save(25, state(25))  # less than 30, but now the newest
    assert found.newest()[0] == 25


def test_unfinished_files_are_not_checkpoints(tmp_path: Path) -> None:
    found = write(tmp_path, 20)
    (tmp_path / ".unfinished-7-step-000000030.safetensors").write_bytes(b"par")
    (tmp_path / "step-000000040.safetensors.bak").write_bytes(b"mine")
    assert list(found.paths()) == [20]
    found.save(30, state(30))
    assert {path.name for path in tmp_path.iterdir()} == {
        "step-000000020.safetensors", "step-000000030.safetensors", "step-000000040.safetensors.bak",
    }  # fmt: skip


@pytest.mark.parametrize("content", [{}, {"run": RUN, "step": 20}, {"run": [], "step": 20, "state": {}}, 3, [1]])
def test_file_without_the_keys_of_a_checkpoint_is_rejected(content: Any, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "step-000000020.safetensors", content)
    with pytest.raises(CheckpointError, match="is not the checkpoint of a run"):
        history(tmp_path).newest()
