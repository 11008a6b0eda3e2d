"""Figures of sample.py, and those that it omits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.calls import TINY, command, inside
from PIL import Image, ImageSequence

from pyro_vae.instruments import samples
from pyro_vae.report.images import labeled_rows
from pyro_vae.report.latents import scatter
from pyro_vae.runs import RunFolder

pytestmark = pytest.mark.usefixtures("short_annealing")

EVERYTHING = {
    "prior.png",
    "reconstructions.png",
    "traversals.png",
    "traversals.gif",
    "interpolations.png",
    "completions.png",
    "codes.png",
    "manifold.png",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert inside("fit", *TINY, "--latent-dim", 2, "--out", folder).returncode == 0
    return folder


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def test_sampling_is_repeatable_and_changes_no_other_file(run: Path) -> None:
    """Equal bytes for equal seeds, other bytes for another seed, and no other file of the run changes."""
    before = bytes_of(run)
    result = inside("sample", run, render=True)
    assert result.returncode == 0, result.stderr
    drawn = bytes_of(run / "samples")
    assert set(drawn) == EVERYTHING
    assert inside("sample", run, render=True).returncode == 0
    assert bytes_of(run / "samples") == drawn
    assert inside("sample", run, "--seed", 1, render=True).returncode == 0
    again = bytes_of(run / "samples")
    assert {name for name in EVERYTHING if drawn[name] != again[name]} >= {"prior.png", "reconstructions.png"}
    assert {name: b for name, b in bytes_of(run).items() if not name.startswith("samples")} == before


def test_figures_have_the_chosen_format_and_the_name_of_the_run(run: Path) -> None:
    """All but the animation, in place of those of a former call; the run itself is the same."""
    config = (run / "config.json").read_bytes()
    assert inside("sample", run, "--figure-format", "svg", render=True).returncode == 0
    evaluate = ("evaluate", run, "--proposal", "guide", "--figure-format", "svg")
    assert inside(*evaluate, render=True).returncode == 0
    drawn = bytes_of(run / "samples")
    assert set(drawn) == {name.replace("png", "svg") for name in EVERYTHING}
    evaluated = bytes_of(run / "evaluation" / "figures")
    assert {"bounds.svg", "rate_distortion.svg", "khat.svg"} <= set(evaluated)
    for name, content in (drawn | evaluated).items():
        assert name == "traversals.gif" or (b"<!-- run -->" in content and content.startswith(b"<?xml"))
    assert (run / "config.json").read_bytes() == config


def test_autoencoder_has_no_prior_samples_and_no_completions(tmp_path: Path) -> None:
    inside("fit", *TINY, "--program", "autoencoder", "--latent-dim", 2, "--out", tmp_path / "run")
    assert inside("sample", tmp_path / "run").returncode == 0
    assert set(bytes_of(tmp_path / "run" / "samples")) == EVERYTHING - {"prior.png", "completions.png"}


def test_folder_without_a_run_is_rejected(tmp_path: Path, refused: Callable[..., None]) -> None:
    refused(command("sample", tmp_path), "not a run folder")


def test_animation_runs_forward_and_back(tmp_path: Path) -> None:
    """Its frames are the images, gray level for gray level."""
    images = torch.rand(5, 6, 2, 2)
    frames = samples._forward_and_backward(images, 3)
    folder = RunFolder(tmp_path / "run").samples
    folder.lock()
    folder.save_animation("some", frames)
    with Image.open(tmp_path / "run" / "samples" / "some.gif") as gif:
        read = [np.asarray(frame.convert("L")) for frame in ImageSequence.Iterator(gif)]
    order = [0, 1, 2, 3, 4, 3, 2, 1]
    for frame, number in zip(read, order, strict=True):
        grey = (255 * images[number, 4]).round().cpu().numpy()  # second row, second column of 2 x 2 tiles with a line
        np.testing.assert_array_equal(frame[4 * 3 : 6 * 3 : 3, 4 * 3 : 6 * 3 : 3], grey)


def test_rows_show_their_images_and_names() -> None:
    first, second = torch.rand(4, 3, 3), torch.rand(4, 3, 3)
    axes = labeled_rows({"first": first, "second": second}, "title").axes[0]
    shown = np.asarray(axes.images[0].get_array())
    np.testing.assert_allclose(shown[1:4, 5:8], first[1].cpu().numpy(), rtol=1e-6)
    np.testing.assert_allclose(shown[5:8, 9:12], second[2].cpu().numpy(), rtol=1e-6)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "second"]
    assert list(axes.get_yticks()) == [9 / 4, 27 / 4]  # the middles of two rows of 9 pixels in all


def test_codes_are_colored_by_class() -> None:
    codes, classes = np.random.default_rng(0).normal(size=(30, 2)), np.arange(30) % 3
    axes = scatter(codes, classes).axes[0]
    for c, points in enumerate(axes.collections):
        np.testing.assert_array_equal(points.get_offsets(), codes[classes == c])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["0", "1", "2"]


def test_single_test_image_has_no_interpolation(tmp_path: Path) -> None:
    inside("fit", *TINY, "--test-images", 1, "--latent-dim", 2, "--out", tmp_path / "run")
    result = inside("sample", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert set(bytes_of(tmp_path / "run" / "samples")) == EVERYTHING - {"interpolations.png"}
