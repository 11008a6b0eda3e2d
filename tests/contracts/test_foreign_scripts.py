"""Third-party programs through the scripts: flattened, given labels, in other units, or rejected before training."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.calls import TINY, command, inside

from pyro_vae.instruments.generated import class_rows
from pyro_vae.trace import Batch

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("short_annealing")]

PROGRAMS = '''
import pyro
import pyro.distributions as dist
import torch
from torch import nn
from torch.nn.functional import one_hot


class Flat(nn.Module):
    """Observes x.reshape(-1, 64), as Pyro's tutorial does."""

    def __init__(self, labels=0):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(64 + labels, 8), nn.Linear(4 + labels, 64)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("latent", dist.Normal(x.new_zeros(x.shape[0], 4), 1.0).to_event(1))
            pyro.sample("obs", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x.reshape(-1, 64))

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = self.encoder(x.reshape(-1, 64)).chunk(2, -1)
            pyro.sample("latent", dist.Normal(loc, log_scale.exp()).to_event(1))


class Labelled(Flat):
    """Takes labels beside x, and has a decoder that knows nothing else of the class."""

    def __init__(self):
        super().__init__(labels=10)

    def model(self, x, y):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data"):
            z = pyro.sample("latent", dist.Normal(x.new_zeros(x.shape[0], 4), 1.0).to_event(1))
            inputs = torch.cat([z, one_hot(y, 10).to(z).expand(*z.shape[:-1], 10)], -1)
            pyro.sample("obs", dist.Bernoulli(logits=self.decoder(inputs)).to_event(1), obs=x.reshape(-1, 64))

    def guide(self, x, y):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data"):
            inputs = torch.cat([x.reshape(-1, 64), one_hot(y, 10).to(x)], -1)
            loc, log_scale = self.encoder(inputs).chunk(2, -1)
            pyro.sample("latent", dist.Normal(loc, log_scale.exp()).to_event(1))


class Measured(Flat):
    """Pixels, and beside them a real number of each image."""

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("latent", dist.Normal(x.new_zeros(x.shape[0], 4), 1.0).to_event(1))
            pyro.sample("obs", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x.reshape(-1, 64))
            pyro.sample("ink", dist.Normal(0.3, 0.1), obs=x.mean((-2, -1)))


class Scaled(Flat):
    """Observes 2 x - 1 under a Gaussian."""

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("latent", dist.Normal(x.new_zeros(x.shape[0], 4), 1.0).to_event(1))
            pyro.sample("obs", dist.Normal(self.decoder(z), 0.6).to_event(1), obs=2 * x.reshape(-1, 64) - 1)


class Global(Flat):
    """A latent that all images share."""

    def model(self, x):
        pyro.sample("shift", dist.Normal(0.0, 1.0))
        super().model(x)

    def guide(self, x):
        pyro.sample("shift", dist.Normal(0.0, 1.0))
        super().guide(x)


def flat(config, images): return Flat()
def labelled(config, images): return Labelled()
def measured(config, images): return Measured()
def scaled(config, images): return Scaled()
def shared(config, images): return Global()
'''


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("programs") / "programs.py"
    path.write_text(PROGRAMS)
    return path


def fitted(programs: Path, name: str, run: Path, *flags: object) -> dict[str, Any]:
    result = inside("fit", *TINY, "--program", f"{programs}:{name}", *flags, "--out", run)
    assert result.returncode == 0, result.stderr
    return json.loads((run / "summary.json").read_text())


def figures(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.png")}


@pytest.mark.parametrize("name", ["flat", "labelled"])
def test_tutorial_program_runs_through_every_script(name: str, programs: Path, tmp_path: Path) -> None:
    run, own = tmp_path / "run", ("--program", f"{programs}:{name}")
    summary = fitted(programs, name, run)
    assert -64 < summary["elbo"] < summary["log_likelihood"] < 0
    assert summary["bits_per_dim"] == pytest.approx(-summary["log_likelihood"] / (64 * math.log(2)))
    assert 0 < summary["squared_error"] < 64
    shown = figures(run / "figures")
    assert shown == {"learning_curve", "bounds", "khat", "reconstructions", "prior_samples"}
    assert inside("fit", *TINY, *own, "--out", run, "--resume").returncode == 0
    flags = ("--proposal", "guide", "--ais-temperatures", 5, "--local-vi-steps", 3, "--sbc-images", 20)
    result = inside("evaluate", run, *own, *flags)
    assert result.returncode == 0, result.stderr
    again = json.loads((run / "evaluation" / "summary.json").read_text())
    assert again["log_likelihood"] == pytest.approx(summary["log_likelihood"], abs=1e-6)
    assert math.isfinite(again["annealing"]["gap"])
    assert inside("sample", run, *own).returncode == 0
    assert {"prior", "reconstructions", "traversals", "interpolations", "completions"} <= figures(run / "samples")


def test_labels_raise_the_log_likelihood(programs: Path, tmp_path: Path) -> None:
    """After a short training by more than 1 nat; log 10 is the most that a label is worth."""
    flags = ("--epochs", 40, "--learning-rate", 0.01, "--train-images", 1200, "--test-images", 200)
    without, given = (fitted(programs, name, tmp_path / name, *flags) for name in ("flat", "labelled"))
    assert given["log_likelihood"] > without["log_likelihood"] + 1
    probed = inside("evaluate", tmp_path / "labelled", "--program", f"{programs}:labelled", "--probe")
    assert "the program takes the labels as an argument" in probed.stdout


def test_prior_samples_have_a_row_for_each_class() -> None:
    x, y = torch.arange(12.0).unsqueeze(1), torch.tensor([2, 0, 1, 2, 0, 1, 5, 5, 2, 0, 1, 5])
    rows = class_rows(Batch(x, y), 3)
    assert rows.args[1].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 5, 5, 5]
    assert torch.equal(rows.x, torch.tensor([1.0, 2.0, 0.0, 6.0]).repeat_interleave(3).unsqueeze(1))
    assert len(class_rows(x, 3)) == 9


def test_extra_real_input_leaves_pixels_binarized(programs: Path, tmp_path: Path) -> None:
    numbers = fitted(programs, "measured", tmp_path / "run")
    assert math.isfinite(numbers["log_likelihood"])
    assert numbers["density"] is False
    assert numbers["bits_per_dim"] is None
    assert "observed sites besides x" in numbers["reasons"]["bits_per_dim"]
    assert 0 < numbers["squared_error"] < 64


def test_metrics_of_rescaled_pixels_are_null_with_a_reason(programs: Path, tmp_path: Path) -> None:
    numbers = fitted(programs, "scaled", tmp_path / "run", "--binarize", "none")
    assert math.isfinite(numbers["log_likelihood"])
    assert numbers["bits_per_dim"] is numbers["squared_error"] is None
    assert all("its unit is not that of x" in numbers["reasons"][name] for name in ("bits_per_dim", "squared_error"))
    assert figures(tmp_path / "run" / "figures") == {"learning_curve", "bounds", "khat"}


def test_program_that_cannot_be_scored_is_rejected_before_training(
    programs: Path, tmp_path: Path, refused: Callable[..., None]
) -> None:
    call = command("fit", *TINY, "--program", f"{programs}:shared", "--out", tmp_path / "run")
    refused(call, "Site 'shift' is outside the data plate")
    assert not (tmp_path / "run").exists()
