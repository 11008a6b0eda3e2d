"""The gallery of systems: its metrics for programs with known answers."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.calls import TINY, PopenInProcess, command, inside
from torch import Tensor

from pyro_vae import config
from pyro_vae.config import programs
from pyro_vae.config.presets import SYSTEMS
from pyro_vae.evaluate import frechet_distance, kernel_distance, train_feature_network
from pyro_vae.instruments.gallery import distances, measure_system
from pyro_vae.instruments.generated import sample_images
from pyro_vae.runs import LabeledImages, load_images


class Bars:
    """z in {0, ..., 15} selects the bright row or column of an 8x8 image; the class is row (0) or column (1)."""

    def __init__(self, fidelity: float) -> None:
        light = torch.eye(8)
        rows, columns = light.unsqueeze(2).expand(8, 8, 8), light.unsqueeze(1).expand(8, 8, 8)
        self.means = (1 - fidelity) / 2 + fidelity * torch.cat([rows, columns])

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.full((16,), 1 / 16)))
            pyro.sample("x", dist.Bernoulli(self.means.to(x)[z]).to_event(2), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            scores = (x.unsqueeze(-3) * self.means.to(x)).sum((-2, -1))
            pyro.sample("z", dist.Delta(scores.argmax(-1).to(x)))

    def images(self, number: int) -> LabeledImages:
        z = torch.randint(16, (number,))
        return LabeledImages(torch.bernoulli(self.means[z]), (z >= 8).long().cpu().numpy())


def test_true_program_generates_images_like_the_training_images() -> None:
    """Its code determines the class; its samples are as close to the test images as training images, to 10 %."""
    truth = Bars(0.9)
    train, test = truth.images(1000), truth.images(1000)
    net = train_feature_network(train.x, torch.as_tensor(train.classes, device=train.x.device), seed=0)
    good = measure_system(truth, train, test, net, lossy=False, seed=0)
    bad = measure_system(Bars(0.3), train, test, net, lossy=False, seed=0)
    assert good["feature_accuracy"] > 0.99
    assert good["accuracy_all"] > 0.99
    assert good["accuracy_few"] > 0.9
    scale = bad["frechet"]
    assert good["frechet"] < 0.05 * scale
    assert good["frechet_of_training_images"] == bad["frechet_of_training_images"] < 0.05 * scale
    # Equal distributions: the unbiased estimate is 0 within 5 s.e. of ten groups, false alarms 7e-4 each.
    for end in ("", "_of_training_images"):
        assert abs(good[f"kernel_distance{end}"]) < 5 * good[f"kernel_distance_se{end}"]
    assert bad["kernel_distance"] > 10 * bad["kernel_distance_se"]


def test_distances_have_the_errors_of_repeated_draws() -> None:
    """Five sets of draws: the mean distance and its standard error by hand; a single set has no error."""
    sets, reference = [torch.randn(50, 4) for _ in range(5)], torch.randn(60, 4)
    found = distances(sets, reference)
    values = np.array([frechet_distance(features, reference) for features in sets])
    assert found["frechet"] == pytest.approx(values.mean())
    assert found["frechet_se"] == pytest.approx(values.std(ddof=1) / 5**0.5)
    assert (found["kernel_distance"], found["kernel_distance_se"]) == kernel_distance(torch.cat(sets), reference)
    assert distances(sets[:1], reference)["frechet_se"] is None


def test_samples_of_a_loss_are_its_means() -> None:
    images = sample_images(Bars(0.5), torch.zeros(300, 8, 8), 0, means=True)
    assert set(np.round(images.unique().tolist(), 6)) == {0.25, 0.75}
    draws = sample_images(Bars(0.5), torch.zeros(300, 8, 8), 0, means=False)
    assert set(draws.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_is_a_valid_configuration(name: str) -> None:
    """Its program and its objective use every field that is set."""
    settings = config.Config(**SYSTEMS[name])
    for field, default in programs.ignored_defaults(settings).items():
        assert getattr(settings, field) == default
    images = load_images(settings.resolve()).pixels
    programs.build(settings.resolve(), images)
    programs.build_objective(settings, len(images.train))


def test_compare_shows_systems_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the metrics of their summaries."""
    monkeypatch.setattr(subprocess, "Popen", PopenInProcess)
    names = ["autoencoder", "vae", "pixelcnn", "notebook"]
    flags = ["--systems", *names, *TINY, "--out", tmp_path / "out"]
    result = inside("compare", *flags)
    assert result.returncode == 0, result.stderr
    rows = {row["name"]: row for row in json.loads((tmp_path / "out" / "systems.json").read_text())}
    assert list(rows) == names
    for name, row in rows.items():
        summary = json.loads((tmp_path / "out" / name / "summary.json").read_text())
        for key in ("log_likelihood", "distortion", "parameters"):
            assert row[key] == summary[key]
        assert name in result.stdout
    assert [name for name in names if rows[name]["log_likelihood"] is None] == ["autoencoder", "notebook"]
    assert [name for name in names if rows[name]["frechet"] is None] == ["autoencoder"]
    assert [name for name in names if rows[name]["accuracy_all"] is None] == ["pixelcnn"]
    # Systems with the same binarization are compared with the same training images.
    same = {rows[name]["frechet_of_training_images"] for name in ("autoencoder", "vae", "pixelcnn")}
    assert len(same) == 1
    assert rows["notebook"]["frechet_of_training_images"] not in same
    assert (tmp_path / "out" / "systems.png").exists()
    assert (tmp_path / "out" / "systems.csv").read_text().count("\n") == 5


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--systems", "vae"], ["two or more"]),
        (["--systems", "vae", "unheard-of"], ["unheard-of", "pixelcnn"]),
        (["--systems", "vae", "wae", "--seeds", "2"], ["leave out --seeds"]),
        (["--systems", "vae", "wae", "--test-images", "1"], ["two or more of each split"]),
        (["--systems", "vae", "wae", "--data", "{table}"], ["features of images", "table"]),
        (["--systems", "vae", "wae", "--data", "{plain}"], ["trains features on labels", "plain"]),
    ],
)
def test_compare_rejects_invalid_galleries(
    flags: Sequence[str], words: Sequence[str], tmp_path: Path, refused: Callable[..., None]
) -> None:
    np.save(tmp_path / "table.npy", np.random.default_rng(0).normal(size=(100, 3)))
    np.save(tmp_path / "plain.npy", np.random.default_rng(0).integers(0, 256, (100, 4, 4), dtype=np.uint8))
    given = [flag.format(table=tmp_path / "table.npy", plain=tmp_path / "plain.npy") for flag in flags]
    refused(command("compare", *given, "--out", tmp_path / "out"), *words)
    assert not (tmp_path / "out").exists()
