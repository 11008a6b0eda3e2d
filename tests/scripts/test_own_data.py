"""A folder of color images through every script: fitted, scored, drawn and moved, or rejected."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.calls import command, inside
from PIL import Image

pytestmark = pytest.mark.usefixtures("short_annealing")

NUMBER = 120
FLAGS = ["--epochs", 3, "--num-samples", 20, "--latent-dim", 3, "--hidden-dim", 12, "--batch-size", 20]
GAUSSIAN = ["--binarize", "none", "--likelihood", "gaussian"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test its own working directory, since --data-root is relative to it by default."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write red and blue images, brighter at the top, each with its own noise."""
    folder, rng = tmp_path_factory.mktemp("own") / "photographs", np.random.default_rng(0)
    for number in range(NUMBER):
        image = rng.integers(0, 60, (12, 10, 3), dtype=np.uint8)
        image[:6, :, 2 * (number % 2)] += np.uint8(120 + number % 40)
        (folder / ("red", "blue")[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / ("red", "blue")[number % 2] / f"{number}.png")
    return folder


def summary_of(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / "summary.json").read_text()))


@pytest.mark.parametrize("net", [pytest.param("mlp", marks=pytest.mark.slow), "conv"])
def test_color_images_are_fitted_scored_and_drawn(net: str, photographs: Path, tmp_path: Path) -> None:
    run, moved = tmp_path / "run", tmp_path / "elsewhere"
    result = inside("fit", "--data", photographs, *FLAGS, *GAUSSIAN, "--net", net, "--out", run, render=True)
    assert result.returncode == 0, result.stderr
    found = [word for word in result.stdout.splitlines() if word.startswith("photographs: ")]
    assert len(found) == 1
    assert found[0].endswith(
        "test images of 3 x 12 x 10 color pixels, 2 classes, split by their content; --likelihood gaussian"
    )
    fitted = summary_of(run)
    nats = fitted["log_likelihood"]
    assert isinstance(nats, float)
    assert fitted["bits_per_dim"] == pytest.approx(8 - nats / (360 * math.log(2)))
    assert {"prior_samples.png", "reconstructions.png"} <= {path.name for path in (run / "figures").iterdir()}
    with Image.open(run / "figures" / "reconstructions.png") as figure:
        pixels = np.asarray(figure.convert("RGB")).astype(int)
    assert ((pixels[..., 0] - pixels[..., 2]) > 80).any()  # red
    assert ((pixels[..., 2] - pixels[..., 0]) > 80).any()  # blue

    shutil.copytree(photographs, moved)
    flags = ["--proposal", "guide", *(["--probe"] if net == "conv" else ["--ais-temperatures", 3])]
    again = inside("evaluate", run, "--data", moved, *flags)
    assert again.returncode == 0, again.stderr
    assert summary_of(run / "evaluation")["log_likelihood"] == pytest.approx(nats, rel=1e-6)
    if net == "conv":
        return
    drawn = inside("sample", run, render=True)
    assert drawn.returncode == 0, drawn.stderr
    for name in ("prior", "reconstructions", "traversals", "interpolations", "completions"):
        assert (run / "samples" / f"{name}.png").stat().st_size > 2000


def test_color_mixture_is_fitted_scored_and_drawn(photographs: Path, tmp_path: Path) -> None:
    """Pictures are means of draws; completions are omitted, since channels of a pixel are dependent given z."""
    run = tmp_path / "run"
    flags = ["--binarize", "none", "--likelihood", "logistic-mixture"]
    result = inside("fit", "--data", photographs, *FLAGS, *flags, "--out", run)
    assert result.returncode == 0, result.stderr
    fitted = summary_of(run)
    nats = fitted["log_likelihood"]
    assert isinstance(nats, float)
    assert fitted["bits_per_dim"] == pytest.approx(-nats / (360 * math.log(2)))
    assert 0 < -nats < 360 * math.log(256)  # better than uniform colors
    again = inside("evaluate", run, "--proposal", "guide")
    assert again.returncode == 0, again.stderr
    assert summary_of(run / "evaluation")["log_likelihood"] == pytest.approx(nats, rel=1e-6)
    drawn = inside("sample", run, render=True)
    assert drawn.returncode == 0, drawn.stderr
    for name in ("prior", "reconstructions", "traversals", "interpolations"):
        assert (run / "samples" / f"{name}.png").stat().st_size > 2000
    assert not (run / "samples" / "completions.png").exists()


def test_size_and_gray_are_applied_and_kept_by_the_run(photographs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ["--image-size", 8, "--channels", 1, "--train-images", 50]
    result = inside("fit", "--data", photographs, *FLAGS, *flags, "--out", run)
    assert result.returncode == 0, result.stderr
    assert "photographs: 50 train" in result.stdout
    assert "of 8 x 8 gray pixels, 2 classes, split by their content; --likelihood logistic-mixture" in result.stdout
    again = inside("evaluate", run, "--proposal", "guide")
    assert again.returncode == 0, again.stderr
    assert summary_of(run / "evaluation")["log_likelihood"] == summary_of(run)["log_likelihood"]


def test_bad_file_stops_before_writing_or_is_skipped(
    photographs: Path, tmp_path: Path, refused: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    folder, run = tmp_path / "own", tmp_path / "run"
    shutil.copytree(photographs, folder)
    (folder / "red" / "0.png").write_bytes(b"nothing")
    refused(command("fit", "--data", folder, *FLAGS, *GAUSSIAN, "--out", run), "0.png cannot be read", "remove it")
    assert not run.exists()
    result = inside("fit", "--data", folder, "--skip-bad", *FLAGS, *GAUSSIAN, "--out", run)
    assert result.returncode == 0, result.stderr
    assert "Left out: " in caplog.text
    assert json.loads((run / "config.json").read_text())["skip_bad"] is True


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data", "{folder}/nowhere"], ["Unknown data set", "mnist", "folder of images"]),
        (["--data", "digits", "--image-size", "8"], ["digits is read unchanged", "--image-size"]),
        (["--data", "{folder}", "--channels", "2"], ["--channels is 2; choose 1 or 3"]),
        (["--data", "{folder}", "--image-size", "0"], ["--image-size is 0"]),
        (["--data", "{folder}", "--program", "pixelcnn"], ["A PixelCNN requires images of shape (height, width)"]),
        (["--data", "{folder}", "--likelihood", "gaussian", "--binarize", "fixed"], ["--binarize none"]),
        (
            ["--data", "{folder}", "--likelihood", "poisson"],
            ["poisson does not support color data", "logistic-mixture"],
        ),
    ],
)
def test_invalid_data_is_rejected(
    flags: list[str], words: list[str], photographs: Path, tmp_path: Path, refused: Callable[..., None]
) -> None:
    given = [flag.format(folder=photographs) for flag in flags]
    few = ["--epochs", 1, "--batch-size", 20]
    refused(command("fit", *given, *few, "--out", tmp_path / "run"), *words)
    assert not (tmp_path / "run").exists()
