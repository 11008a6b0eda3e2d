"""Runs whose program is in a file: evaluated and resumed after the file has moved, and built as in their fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from helpers.calls import TINY, command, inside
from helpers.fixtures import Refused
from helpers.program_files import NET

from pyro_vae.config import Config, programs
from pyro_vae.errors import CheckpointError
from pyro_vae.instruments import Result
from pyro_vae.runs import Checkpoints, RunFolder, RunFolderError, load, load_images


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run next to the file of its program; tests may copy both but modify neither."""
    folder = tmp_path_factory.mktemp("fitted")
    (folder / "net.py").write_text(NET)
    done = inside("fit", *TINY, "--seed", 5, "--program", f"{folder / 'net.py'}:factory", "--out", folder / "run")
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture
def moved(run: Path, tmp_path: Path) -> Path:
    """Return a copy of the run next to a renamed copy of the file of its program."""
    shutil.copytree(run, tmp_path / "run")
    shutil.copy(run.with_name("net.py"), tmp_path / "renamed.py")
    return tmp_path / "run"


def built_by_fit(path: Path) -> Any:
    """Return the program of a file, built as the fit of `run` built it."""
    torch.set_default_dtype(torch.float32)
    pyro.set_rng_seed(5)
    settings = Config(seed=5, device="cpu", program=f"{path}:factory")
    return programs.build(settings, load_images(settings).pixels)


def test_run_is_scored_after_its_program_file_moved(run: Path, moved: Path) -> None:
    expected = json.loads((run / "summary.json").read_text())
    done = inside("evaluate", moved, "--program", f"{moved.with_name('renamed.py')}:factory", "--proposal", "guide")
    assert done.returncode == 0, done.stderr
    found = json.loads((moved / "evaluation" / "summary.json").read_text())
    for key in ("elbo", "log_likelihood"):
        assert found[key] == pytest.approx(expected[key], rel=1e-6)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], ["repeat that flag", "net.py:factory"]),
        (["--program", "vae"], ["repeat that flag", "net.py:factory"]),
        (["--program", "{here}/renamed.py"], ["repeat that flag", "net.py:factory"]),
        (["--program", "{here}/renamed.py:other"], ["'factory'", "'other'"]),
        (["--program", "{here}/net.py:factory"], ["no readable Python file '{here}/net.py'"]),
    ],
)
def test_run_is_not_scored_with_another_program(
    flags: Sequence[str], words: Sequence[str], moved: Path, refused: Refused
) -> None:
    flags, words = ([each.format(here=moved.parent) for each in some] for some in (flags, words))
    refused(command("evaluate", moved, *flags), *words)
    assert not (moved / "evaluation").exists()


def test_run_of_a_built_in_program_is_not_scored_with_a_program_file(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create(Config().to_json())
    (folder.checkpoints / "step-000000001.safetensors").touch()
    for program in ("net.py:factory", "net.py:vae", "pixelcnn"):
        with pytest.raises(ValueError, match="was fitted with --program 'vae'; repeat that flag or"):
            load.load_config(folder, {"program": program})
    assert load.load_config(folder, {"program": "vae"}) == load.load_config(folder, {})


def test_run_is_resumed_after_its_program_file_moved(run: Path, moved: Path, refused: Refused) -> None:
    """It continues from its newest checkpoint to the same numbers, also after a second move."""
    (moved / "summary.json").unlink()
    lines = (moved / "metrics.jsonl").read_text()
    flags = [*TINY, "--seed", 5, "--out", moved, "--resume", "--program"]
    refused(command("fit", *flags, f"{moved.with_name('renamed.py')}:other"), "different values of program")
    done = inside("fit", *flags, f"{moved.with_name('renamed.py')}:factory")
    assert done.returncode == 0, done.stderr
    assert (moved / "metrics.jsonl").read_text() == lines  # no epoch was fitted again
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (run, moved)]
    assert summaries[0]["log_likelihood"] == summaries[1]["log_likelihood"]
    assert summaries[1]["config"]["program"] == f"{moved.with_name('renamed.py')}:factory"
    again = inside("fit", *flags, f"{run.with_name('net.py')}:factory")
    assert again.returncode == 0, again.stderr
    assert "nothing to resume" in again.stdout


def test_checkpoint_matches_the_factory_and_not_the_path(tmp_path: Path) -> None:
    run = {"seed": 0, "program": "it's/here.py:factory"}
    Checkpoints(tmp_path, run).save(3, {"number": 3})
    for place in ("there.py:factory", "C:\\there.py:factory", run["program"]):
        assert Checkpoints(tmp_path, {**run, "program": place}).newest() == (3, {"number": 3})
    for program in ("here.py:other", "factory", "vae", None, 3):
        with pytest.raises(CheckpointError, match=r"belongs to another run: its program is \"it's/here\.py:factory\""):
            Checkpoints(tmp_path, {**run, "program": program}).newest()


def test_run_folder_matches_the_factory_and_not_the_path(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create({"seed": 0, "program": "here.py:factory"})
    folder.check_config_matches({"seed": 0, "program": "elsewhere/there.py:factory"})
    for program in ("here.py:other", "factory", "vae"):
        with pytest.raises(RunFolderError, match="values of program;"):
            folder.check_config_matches({"seed": 0, "program": program})
    with pytest.raises(RunFolderError, match="values of seed;"):
        folder.check_config_matches({"seed": 1, "program": "there.py:factory"})


@pytest.mark.parametrize("changes", [{}, {"seed": 1}, {"seed": 1, "num_samples": 3}])
def test_fitted_program_is_built_with_the_seed_of_its_run(changes: dict[str, Any], run: Path) -> None:
    """Including values drawn at construction that are not parameters, whatever the evaluation's seed."""
    first, folder = built_by_fit(run.with_name("net.py")), RunFolder(run)
    settings = load.load_config(folder, {"program": f"{run.with_name('net.py')}:factory", "device": "cpu", **changes})
    pyro.set_rng_seed(8)
    expected = float(torch.rand(())), np.random.rand()
    pyro.set_rng_seed(8)
    found = load.restore(folder, settings, download=False)
    assert (float(torch.rand(())), np.random.rand()) == expected
    assert found.program.drawn == first.drawn
    assert found.config.seed == changes.get("seed", 5)
    assert not torch.equal(found.program.decoder.weight, first.decoder.weight)
    untrained = load.rebuild(folder, settings, found.images)
    assert untrained.drawn == first.drawn
    assert torch.equal(untrained.decoder.weight, first.decoder.weight)


def test_evaluation_seed_changes_only_the_draws(run: Path, moved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The draws differ; the program and the initial weights that `probe` compares with do not."""
    probed: dict[str, Any] = {}

    def probe(program: Any, untrained: Any, *rest: object) -> Result:
        probed.update(program=program, untrained=untrained)
        return Result(None, {"probe": "it is noted"})

    monkeypatch.setattr("pyro_vae.instruments.probe.measure_probe", probe)
    done = inside(
        "evaluate",
        moved,
        "--program",
        f"{moved.with_name('renamed.py')}:factory",
        "--device",
        "cpu",
        "--seed",
        1,
        "--probe",
    )
    assert done.returncode == 0, done.stderr
    expected = json.loads((run / "summary.json").read_text())
    found = json.loads((moved / "evaluation" / "summary.json").read_text())
    assert found["config"]["seed"] == 1
    assert found["log_likelihood"] != expected["log_likelihood"]
    assert found["log_likelihood"] == pytest.approx(expected["log_likelihood"], abs=0.5)
    assert probed["untrained"].drawn == probed["program"].drawn
    assert torch.equal(probed["untrained"].encoder.weight, built_by_fit(run.with_name("net.py")).encoder.weight)


@pytest.mark.parametrize("seed", [[], ["--seed", "1"]])
def test_samples_use_the_program_of_the_run(seed: Sequence[str], moved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures of `sample.py` show the pixel permutation that was fitted."""
    drawn = []
    for name in ("prior", "reconstructions", "latents", "completions"):
        monkeypatch.setattr(
            f"pyro_vae.instruments.{'completions' if name == 'completions' else 'samples'}.write_{name}",
            lambda results, program, *rest: drawn.append(program),
        )
    done = inside("sample", moved, "--program", f"{moved.with_name('renamed.py')}:factory", *seed)
    assert done.returncode == 0, done.stderr
    assert [program.drawn for program in drawn] == [built_by_fit(moved.with_name("renamed.py")).drawn] * 4
