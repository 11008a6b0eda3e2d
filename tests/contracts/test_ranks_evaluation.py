"""Evaluation in several processes gives the results of one process, to the bit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from helpers.calls import ROOT, TINY, command
from helpers.processes import run_together
from helpers.programs import images, small_vae
from helpers.rank_evaluation import TIMES, measure, measure_compiled

from pyro_vae.evaluate import score
from pyro_vae.evaluate.annealing import pilot
from pyro_vae.evaluate.features import finetune
from pyro_vae.infer import validation
from pyro_vae.instruments import batches, probe

pytestmark = pytest.mark.host


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore what the measurements set, after the test."""
    monkeypatch.setattr(batches, "EVAL_BATCH_SIZE", batches.EVAL_BATCH_SIZE)
    monkeypatch.setattr(probe, "_FINETUNED_SUBSETS", probe._FINETUNED_SUBSETS)
    monkeypatch.setattr(pilot, "_MIN_STEPS", pilot._MIN_STEPS)
    monkeypatch.setattr(finetune, "_MIN_STEPS", finetune._MIN_STEPS)
    monkeypatch.setattr(validation, "_VALID_BATCH", validation._VALID_BATCH)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the other processes
    yield
    torch.set_num_threads(threads)


def assert_equal_in(folder: Path, size: int, kind: str, expected: dict[str, np.ndarray]) -> None:
    """Measure in several processes, and compare each of them with one process."""
    folder.mkdir()
    processes = run_together(size, "rank_evaluation.py", kind, folder)
    assert [process.returncode for process in processes] == [0] * size, processes
    for rank in range(size):
        found = dict(np.load(folder / f"{rank}.npz"))
        assert found.keys() == expected.keys()
        different = [name for name in expected if expected[name].tobytes() != found[name].tobytes()]
        assert different == []


def test_all_evaluations_of_7_images_agree_on_3_processes(tmp_path: Path, promised: Callable[[str], None]) -> None:
    expected = measure()
    varying = {name.split("/")[1] for name, array in expected.items() if array.dtype.kind in "fi" and array.any()}
    assert varying == {name.split("/")[1] for name in expected}  # every evaluation has numbers
    assert len(varying) == 12
    assert_equal_in(tmp_path / "3", 3, "eager", expected)
    promised(f"evaluation by 3 processes: {len(expected)} of {len(expected)} arrays and numbers equal those of one")


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 8])
def test_all_evaluations_of_7_images_agree(size: int, tmp_path: Path) -> None:
    """With 8 processes, four of them have no batch."""
    assert_equal_in(tmp_path / "n", size, "eager", measure())


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_compiled_scores_agree(size: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = measure_compiled()
    assert "not compiled" not in caplog.text
    assert_equal_in(tmp_path / "n", size, "compiled", expected)


def test_scores_in_batches_are_those_of_score() -> None:
    vae, x = rank_vae()
    batches.EVAL_BATCH_SIZE = 2
    found = batches.score_batched(vae, x, 30, seed=4, compiled=False)
    expected = score(vae.model, vae.guide, x, 30, batch_size=2, seed=4)
    for name, value in vars(expected).items():
        np.testing.assert_array_equal(getattr(found, name), value)


def rank_vae() -> tuple[Any, torch.Tensor]:
    pyro.set_rng_seed(1)
    return small_vae(), images(7)


def torchrun(size: int, call: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    return subprocess.run(
        [*launcher, *call[1:]], capture_output=True, text=True, check=False, env=environment, **kwargs
    )


def untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: untimed(each) for name, each in value.items() if name not in TIMES}
    return value


@pytest.mark.slow
def test_evaluate_writes_the_same_files_under_torchrun(run: Path, tmp_path: Path) -> None:
    """250 images are three batches for two processes. Errors and the death of a process end the call."""
    folders = {size: shutil.copytree(run, tmp_path / str(size) / "run") for size in (1, 2)}
    flags = ["--test-images", 250, "--ais-temperatures", 3, "--chains", 2, "--local-vi-steps", 2, "--sbc-images", 20]
    outputs = []
    for size, folder in folders.items():
        result = torchrun(size, command("evaluate", folder, *flags, "--probe"))
        assert result.returncode == 0, result.stderr
        outputs.append(result.stdout)
        assert "\x1b" not in result.stderr
    assert outputs[0] == outputs[1]
    names = [
        sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        for folder in folders.values()
    ]
    assert names[0] == names[1]
    for name in names[0]:
        one, two = (folder / name for folder in folders.values())
        if name.endswith("evaluation/summary.json"):
            assert untimed(json.loads(one.read_text())) == untimed(json.loads(two.read_text()))
        else:
            assert one.read_bytes() == two.read_bytes(), name

    failed = torchrun(2, command("evaluate", tmp_path / "missing"))
    assert failed.returncode != 0
    assert [line for line in failed.stderr.splitlines() if line.startswith("error: ")] == [
        f"error: {tmp_path / 'missing'} is not a run folder: it has no config.json."
    ]


@pytest.mark.slow
def test_compare_gives_whole_fits_to_processes(tmp_path: Path) -> None:
    """The runs and the table are those of one process; a fit that fails ends the comparison in one line."""
    flags = ["--priors", "standard", "mixture", "--seeds", 2, *TINY]
    tables = []
    for size in (1, 2):
        result = torchrun(size, command("compare", *flags, "--out", "out"), cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        tables.append([row["log_likelihood"] for row in json.loads((tmp_path / "out" / "comparison.json").read_text())])
        assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == [
            "mixture", "mixture-seed1", "standard", "standard-seed1",
        ]  # fmt: skip
        shutil.rmtree(tmp_path / "out")
    assert tables[0] == tables[1]
    broken = torchrun(2, command("compare", *flags, "--learning-rate", "9e5", "--out", tmp_path / "broken"))
    assert broken.returncode != 0
    lines = [line for line in broken.stderr.splitlines() if " ended with status " in line]
    assert lines == [f"The fit of {tmp_path / 'broken' / 'standard'} ended with status 1."]
