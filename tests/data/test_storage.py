"""Data larger than memory: splits in temporary files, training images that stay on the host."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import pyro
import pytest
import torch
from helpers.bits import assert_same, records

from pyro_vae.config import Config, programs
from pyro_vae.data import Images, storage
from pyro_vae.data.batches import Batches, StreamedBatches
from pyro_vae.infer import SVI, Fit, Optim
from pyro_vae.runs import Run, prepare


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Treat every tensor as large, and return the empty temporary directory."""
    monkeypatch.setattr(storage, "_LARGE", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def noise() -> Images:
    gray = torch.randint(0, 256, (60, 8, 9), dtype=torch.uint8, device="cpu")
    return Images("noise", gray, gray, gray)


@pytest.mark.parametrize("full", [False, True])
def test_large_splits_are_the_same_in_a_temporary_file(
    full: bool, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = noise()
    if full:

        def refuse(*arguments: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "posix_fallocate", refuse)
    splits = [images.observed("fixed").split("train"), images.observed("none").with_dequantization().split("test")]
    if not full and (maps := Path("/proc/self/maps")).exists():
        assert len(re.findall(re.escape(str(temporary)) + r"/pyro_vae-\S+ \(deleted\)", maps.read_text())) >= 2
    assert not list(temporary.iterdir())  # unlinked while open, so that no file remains however the process ends
    monkeypatch.setattr(storage, "_LARGE", 2**28)
    assert torch.equal(splits[0], images.observed("fixed").split("train"))
    assert torch.equal(splits[1], images.observed("none").with_dequantization().split("test"))


def streamed(run: Run) -> StreamedBatches:
    batches = run.batches()
    pixels = run.images.pixels.train
    device = run.images.device or pixels.device
    arguments = (pixels, batches.batch_size, batches.seed, run.images.observe, batches.labels)
    return StreamedBatches(*arguments, device=device)


@pytest.mark.parametrize(
    ("program", "graph"),
    [({}, None), ({}, "recorded"), ({"program": "m2", "labels": 20}, None), ({"program": "cvae"}, "recorded")],
)
def test_streamed_batches_train_bit_identical(program: dict[str, object], graph: str | None) -> None:
    """Whether batches are gathered inside or before the step, for labeled, partly labeled and unlabeled images."""
    ends = []
    for stream in (False, True):
        pyro.set_rng_seed(0)
        run = prepare(
            Config(**program, train_images=70, test_images=5, batch_size=32, hidden_dim=8, device="cpu").resolve()  # type: ignore[arg-type]
        )
        objective = programs.build_objective(run.config, 70)
        svi = SVI(
            run.program.model, run.program.guide, Optim(torch.optim.Adam, {"lr": 0.01}), objective, execution=graph
        )
        batches: Batches = streamed(run) if stream else run.batches()
        fit = Fit(svi, batches, 2, valid=run.observed("valid"), patience=2)
        epochs, state = records(list(fit)), svi.state_dict()
        del state["recorded_sizes"]  # sizes of indices, or of pixels and labels
        ends.append((epochs, state))
    assert ends[0][0] == ends[1][0]
    assert_same(ends[0][1], ends[1][1])
