"""What fails late costs nothing else: numbers are written before figures, and each figure is drawn by itself."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from helpers.calls import TINY, command, inside
from helpers.run_folders import tree
from matplotlib.figure import Figure

from pyro_vae.infer import ELBO
from pyro_vae.instruments import INSTRUMENTS
from pyro_vae.report import curves, images
from pyro_vae.runs import Folder, RunFolder
from pyro_vae.runs.netcdf import read_netcdf

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("short_annealing")]

FIGURES = {"learning_curve", "bounds", "khat", "reconstructions", "prior_samples"}
Patch = pytest.MonkeyPatch


def style(run: Path, patch: Patch) -> set[str]:
    """A matplotlibrc with text.usetex, where LaTeX is not installed: figures have the style of the package."""
    patch.setitem(mpl.rcParams, "text.usetex", True)
    patch.setenv("PATH", "/nowhere")
    return set()


def folder_of_its_name(run: Path, patch: Patch) -> set[str]:
    (run / "figures" / "khat.png").unlink()
    (run / "figures" / "khat.png" / "mine").mkdir(parents=True)
    return {"khat"}


def file_named_figures(run: Path, patch: Patch) -> set[str]:
    for path in (run / "figures").iterdir():
        path.unlink()
    (run / "figures").rmdir()
    (run / "figures").write_text("mine")
    return FIGURES


def error_in_a_plot(run: Path, patch: Patch) -> set[str]:
    def fail(*args: object) -> Figure:
        raise ZeroDivisionError("first line\nsecond line")

    patch.setattr(curves, "bounds", fail)
    patch.setattr(images, "image_grid", fail)
    return {"bounds", "prior_samples"}


def full_disk(run: Path, patch: Patch) -> set[str]:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    patch.setattr(Figure, "savefig", fail)
    return FIGURES


@pytest.mark.parametrize("fault", [style, folder_of_its_name, file_named_figures, error_in_a_plot, full_disk])
def test_figures_that_fail_cost_no_numbers(
    fault: Callable[[Path, Patch], set[str]], run: Path, promised: Callable[[str], None]
) -> None:
    """The run is at the end of its training. The other figures are drawn, and the exit status says it."""
    before = json.loads((run / "summary.json").read_text())
    (run / "summary.json").unlink()
    for path in (run / "figures").iterdir():
        path.write_bytes(b"old")
    with Patch.context() as patch:
        missing = fault(run, patch)
        result = inside("fit", *TINY, "--out", run, "--resume", render=True)
    assert result.returncode == (3 if missing else 0)
    assert f"{before['log_likelihood']:.2f} +- " in result.stdout
    after = json.loads((run / "summary.json").read_text())
    assert (after["log_likelihood"], after["elbo"]) == (before["log_likelihood"], before["elbo"])
    line = result.stderr
    assert len(line.splitlines()) == bool(missing)
    assert ("could not be drawn; all numbers are written" in line) == bool(missing)
    for name in FIGURES:
        drawn = run / "figures" / f"{name}.png"
        assert (f"{drawn} (" in line) == (name in missing)
        assert name in missing or drawn.stat().st_size > 3000
    assert inside("fit", *TINY, "--out", run, "--resume").returncode == 0  # finished: nothing to resume
    promised("figures that cannot be drawn: all numbers are written, and the status says it")


def test_figures_of_evaluations_and_samples_fail_alone(run: Path) -> None:
    with Patch.context() as patch:
        error_in_a_plot(run, patch)
        patch.setattr(images, "side_by_side", curves.bounds)
        evaluated, sampled = inside("evaluate", run), inside("sample", run)
    assert (evaluated.returncode, sampled.returncode) == (3, 3)
    assert json.loads((run / "evaluation" / "summary.json").read_text())["elbo"] < 0
    names = {path.stem for path in (run / "evaluation" / "figures").iterdir()}
    assert names == {"khat", "reconstructions", "rate_distortion"}
    assert f"{run / 'samples' / 'prior'}.png (ZeroDivisionError: first line)" in sampled.stderr
    assert {"traversals.png", "interpolations.png"} <= {path.name for path in (run / "samples").iterdir()}


def test_numbers_before_a_failing_instrument_are_kept(run: Path, monkeypatch: Patch) -> None:
    """Those of an earlier call are replaced together, so that no file belongs to other settings."""
    assert inside("evaluate", run, "--ais-temperatures", 2, "--chains", 2).returncode == 0
    before = tree(run / "evaluation")
    assert "annealing.nc" in before

    def fail(*args: object) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(INSTRUMENTS["calibration"], "measure", fail)
    result = inside("evaluate", run, "--num-samples", 33, "--local-vi-steps", 2, "--sbc-images", 5)
    assert result.returncode == 1
    found = json.loads((run / "evaluation" / "summary.json").read_text())
    assert found["num_samples"] == 33
    assert "local" in found
    assert "annealing" not in found
    files = {path.name for path in (run / "evaluation").iterdir()}
    assert files == {".lock", "figures", "summary.json", "scores.nc", "bounds.csv", "local.nc"}


def test_evaluation_that_fails_before_its_scores_replaces_nothing(run: Path, monkeypatch: Patch) -> None:
    assert inside("evaluate", run, "--num-samples", 5).returncode == 0
    before = tree(run / "evaluation")

    def fail(*args: object, **kwargs: object) -> Any:
        raise MemoryError("none left")

    monkeypatch.setattr("pyro_vae.instruments.evaluation.measure_scores", fail)
    assert inside("evaluate", run, "--num-samples", 7).returncode == 1
    assert tree(run / "evaluation") == before


@pytest.mark.parametrize("several", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_run_refused_in_its_first_step_leaves_and_replaces_nothing(
    several: int, run: Path, tmp_path: Path, promised: Callable[[str], None]
) -> None:
    seeds, flags = ("--seeds", several), ["--prior", "mixture", "--objective", "meanfield-elbo"]
    before = tree(run)
    result = inside("fit", *TINY, *flags, *seeds, "--out", run, "--overwrite")
    assert result.returncode == 2
    assert "No closed form" in result.stderr
    assert tree(run) == before
    new = tmp_path / "new" / "run"
    for resume in ([], ["--resume"]):  # as compare.py calls it
        assert inside("fit", *TINY, *flags, *seeds, *resume, "--out", new).returncode == 2
        assert not new.parent.exists()
    corrected = [*flags[:2], *seeds, "--epochs", 1]
    assert inside("fit", *TINY, *corrected, "--out", new).returncode == 0
    assert RunFolder(new).finished
    promised("a run refused in its first step: no folder is left, and an old run is unchanged")


@pytest.mark.parametrize("policy", ["stop", "rollback"])
def test_nonfinite_first_step_keeps_the_old_run(
    policy: str, run: Path, monkeypatch: Patch, promised: Callable[[str], None]
) -> None:
    """Not even a rollback loads the checkpoints of the run that was to be replaced."""
    finite = ELBO.per_image
    monkeypatch.setattr(ELBO, "per_image", lambda *args: finite(*args) * np.nan)
    before = tree(run)
    flags = ["--on-nonfinite", policy, "--compile", "off", "--out", run, "--overwrite"]
    result = inside("fit", *TINY, *flags)
    assert result.returncode == 1, result.stderr
    assert "at step 0" in result.stderr
    assert "There is no checkpoint yet." in result.stderr
    assert tree(run) == before
    promised("a non-finite first step: the old run is unchanged")


BATCH_NORM = """
import pyro, torch
import pyro.distributions as dist
from torch import nn


class Normalized(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(-2), nn.Linear(64, 8), nn.BatchNorm1d(8))
        self.decoder = nn.Linear(4, 64)

    def model(self, x):
        pyro.module("normalized", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 4), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z).unflatten(-1, (8, 8))).to_event(2), obs=x)

    def guide(self, x):
        pyro.module("normalized", self)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def factory(config, images):
    return Normalized()
"""


def test_refused_last_batch_leaves_and_replaces_nothing(
    run: Path, tmp_path: Path, refused: Callable[..., None]
) -> None:
    """Of 300 images in batches of 23, the last one is alone, which batch normalization refuses."""
    (tmp_path / "normalized.py").write_text(BATCH_NORM)
    before = tree(run)
    flags = ["--program", tmp_path / "normalized.py:factory", "--batch-size", 23, "--out", run, "--overwrite"]
    refused(command("fit", *TINY, *flags), "Batch 13 of epoch 0 holds one image", "--batch-size")
    assert tree(run) == before


def test_per_image_results_are_written_atomically_however_large_files_may_be(tmp_path: Path) -> None:
    """Beyond a limit of the file size, HDF5 would end the process if it wrote the file itself."""
    folder = Folder(tmp_path)
    folder.write_per_image("scores", {"elbo": np.zeros(3)})
    child = os.fork()
    if not child:
        status = 1
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
            folder.write_per_image("scores", {"elbo": np.random.default_rng(0).random(10_000)})
        except OSError:
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["scores.nc"]
    np.testing.assert_array_equal(read_netcdf(tmp_path / "scores.nc")["elbo"], np.zeros(3))
