"""compare.py with tiny settings: each run has the flags that apply to it, and only comparable numbers are compared."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.calls import TINY, PopenInProcess, command, inside, script

from pyro_vae.config import Config
from pyro_vae.config.presets import SYSTEMS as SYSTEMS_OF_NAME
from pyro_vae.errors import UserError
from pyro_vae.instruments import comparison, comparison_checks
from pyro_vae.runs import RunFolder


def test_densities_and_probabilities_of_pixels_are_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", PopenInProcess)
    flags = [
        "--likelihoods",
        "gaussian",
        "logistic-mixture",
        "--binarize",
        "none",
        *TINY,
        "--epochs",
        30,
        "--learning-rate",
        0.01,
    ]
    result = inside("compare", *flags, "--out", tmp_path / "out")
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert "gaussian scores densities" in line
    assert "bits_per_dim" in line
    for name in ("gaussian", "logistic-mixture"):  # the runs exist, with the number that is comparable
        summary = json.loads((tmp_path / "out" / name / "summary.json").read_text())
        assert 0 < summary["bits_per_dim"] < 8


def test_objectives_are_compared_each_with_its_own_flags(run: Path, tmp_path: Path) -> None:
    """In separate processes; the first run was fitted before with the same result."""
    shutil.copytree(run, tmp_path / "out" / "elbo")
    flags = ["--objectives", "elbo", "beta-tcvae", "--beta", 4, *TINY]
    result = script("compare", *flags, "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    betas = {
        name: json.loads((tmp_path / "out" / name / "config.json").read_text())["beta"]
        for name in ("elbo", "beta-tcvae")
    }
    assert betas == {"elbo": 1.0, "beta-tcvae": 4.0}


def test_unfinished_run_of_another_comparison_is_not_continued(
    run: Path, tmp_path: Path, refused: Callable[..., None]
) -> None:
    """fit.py --resume would take the number of training images of the run, which this comparison leaves open."""
    shutil.copytree(run, tmp_path / "out" / "elbo")
    (tmp_path / "out" / "elbo" / "summary.json").unlink()
    flags = ["--objectives", "elbo", "iwae", *TINY[2:]]
    refused(command("compare", *flags, "--out", tmp_path / "out"), "different values of train_images")


def test_single_images_are_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their differences have no standard error."""
    monkeypatch.setattr(comparison, "read_summary", lambda run: {"log_likelihood": -90.0, "num_test_images": 1})
    with pytest.raises(UserError, match="first has one test image"):
        comparison.compare({name: [RunFolder(tmp_path / name)] for name in ("first", "second")})


SYSTEMS = ["--systems", "vae", "iwae", "beta-vae"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([*SYSTEMS, "--objective", "iwae"], ["--objective", "--systems"]),
        ([*SYSTEMS, "--prior", "vamp"], ["--prior", "--systems"]),
        ([*SYSTEMS, "--program", "two-layer"], ["--program", "--systems"]),
        ([*SYSTEMS, "--beta", 3], ["--beta", "--systems"]),
        ([*SYSTEMS, "--num-particles", 10], ["--num-particles is 5 in the system iwae"]),
        (["--systems", "vae", "notebook", "--latent-dim", 8], ["--latent-dim is 2 in the system notebook"]),
        (["--systems", "vae", "wae", "--depth", 3, "--net", "conv", "--width", 4, "--labels", 7], ["--labels"]),
        (["--objectives", "elbo", "iwae", "--beta", 3], ["--beta has no effect on any of elbo, iwae"]),
        (["--objectives", "elbo", "free-bits", "--warmup-epochs", 3], ["--warmup-epochs has no effect"]),
        (["--priors", "standard", "vamp", "--prior", "laplace"], ["--prior is what --priors compares"]),
        (["--priors", "standard", "vamp", "--seed", 2**32 - 1, "--seeds", 2], [f"--seed is {2**32}"]),
        (["--priors", "standard", "vamp", "--seeds", 10**9], ["--seeds is 1000000000", "10000"]),
        (["--priors", "standard", "vamp", "--test-images", 1], ["one test image", "two or more"]),
    ],
)
def test_what_would_be_dropped_or_fail_later_is_refused_at_once(
    flags: list[object],
    words: list[str],
    tmp_path: Path,
    refused: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)  # nothing is fitted
    refused(command("compare", *flags, "--out", tmp_path / "out"), *words)
    assert not (tmp_path / "out").exists()


def test_one_test_image_of_your_own_data_is_refused_at_once(
    tmp_path: Path, refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    values = np.random.default_rng(0).random((40, 3, 3))
    np.savez(tmp_path / "own.npz", x_train=values, x_test=values[:1])
    call = command("compare", "--priors", "standard", "vamp", "--data", tmp_path / "own.npz", "--out", tmp_path / "out")
    refused([*call, "--data-root", str(tmp_path)], "one test image")


def test_flags_that_some_system_reads_are_kept() -> None:
    """Each system is fitted as its name says, and has the flags that apply to it."""
    given = Config(latent_dim=8, hidden_dim=30, net="gated")
    varied = {name: comparison.vary_config(given, "system", name, 0) for name in SYSTEMS_OF_NAME}
    chosen = {name: varied[name] for name in ("pixelcnn", "vae", "iwae", "beta-vae", "wae")}
    comparison_checks.check_varied(given, "system", chosen)
    assert {name: (each.objective, each.num_particles, each.beta) for name, each in chosen.items()} == {
        "pixelcnn": ("elbo", 1, 1.0),
        "vae": ("elbo", 1, 1.0),
        "iwae": ("iwae", 5, 1.0),
        "beta-vae": ("beta", 1, 2.0),
        "wae": ("wae-mmd", 1, 1.0),
    }
    assert {name: each.latent_dim for name, each in chosen.items()} == dict.fromkeys(chosen, 8) | {"pixelcnn": 50}
