"""The documentation: its examples run, its commands parse, and its links, flags and files exist."""

from __future__ import annotations

import importlib
import io
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from helpers.calls import TINY, inside
from helpers.documents import (
    DOCUMENTS,
    ROOT,
    commands_of,
    flags_of,
    headings_of,
    links_of,
    python_of,
    spans_of,
    text_of,
)
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.distributions import MultivariateNormal

import pyro_vae as pv
from pyro_vae.config import programs
from pyro_vae.infer import mmd

LIBRARY, OWN_PROGRAM, PATCHES = python_of("README.md")
(MATCH,) = python_of(".github/RESULTS.md")
(FACTORY,) = python_of("scripts/README.md")
# Self-contained blocks.
OTHERS = [(name, code) for name in DOCUMENTS for code in python_of(name)]
OTHERS = [(name, code) for name, code in OTHERS if code not in (LIBRARY, OWN_PROGRAM, PATCHES, MATCH, FACTORY)]
SCRIPTS = ("fit", "evaluate", "sample", "compare", "benchmark")

pytestmark = pytest.mark.host


def lines_of(code: str, folder: Path) -> list[str]:
    """Run a block in a process of its own."""
    result = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True, cwd=folder
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.fixture
def lines_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """Return a function that runs a block in this process, which saves an import of torch."""

    def run(code: str) -> list[str]:
        monkeypatch.chdir(tmp_path)
        torch.set_default_dtype(torch.float32)
        with redirect_stdout(io.StringIO()) as taken:
            exec(code, {"__name__": "example"})
        return taken.getvalue().splitlines()

    return run


def test_library_example(tmp_path: Path) -> None:
    lines = lines_of(LIBRARY, tmp_path)
    last = re.fullmatch(
        r"log p\(x\) (\S+) \+- \S+ nats \(ELBO (\S+), K = 1000, 256 images\); k-hat > 0.67 for (\d+) of 256", lines[-1]
    )
    assert last is not None, lines[-1]
    log_likelihood, elbo, bad = map(float, last.groups())
    assert len(lines) == 31
    assert float(lines[0].removeprefix("epoch 0: ELBO ").split()[0]) < elbo < log_likelihood < -20  # it was trained
    assert 0 <= bad <= 256


def test_patches_of_photographs_example(tmp_path: Path, lines_inside: Callable[[str], list[str]]) -> None:
    """Each patch comes from its split's part of the photograph, so that test and training patches do not overlap."""
    lines_inside(PATCHES)
    for name, photograph in zip(["china", "flower"], load_sample_images().images, strict=True):
        for split, part, number in [("train", photograph[:, 214:], 2250), ("test", photograph[:, :214], 250)]:
            files = sorted((tmp_path / "patches" / split / name).iterdir())
            assert len(files) == number
            places = sliding_window_view(part, (32, 32, 3))[:, :, 0]
            for file in files[:5]:
                with Image.open(file) as image:
                    patch = np.asarray(image)
                starts = (places[:, :, 0, 0] == patch[0, 0]).all(-1)
                assert (places[starts] == patch).all((1, 2, 3)).any()


def test_own_program_example(lines_inside: Callable[[str], list[str]]) -> None:
    """It learns the three means: its ELBO beats that of pixels at 1/2, -64 log 2 = -44.4 nats."""
    lines = lines_inside(OWN_PROGRAM)
    elbo, log_likelihood = map(float, lines[-1].split())
    assert len(lines) == 21
    assert float(lines[0].split()[1]) < elbo <= log_likelihood < -20
    assert elbo > -44.4


@pytest.mark.parametrize(("name", "code"), OTHERS, ids=[name for name, _ in OTHERS])
def test_other_blocks_run(name: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(code, {"__name__": "example"})


def test_code_matching_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table's commands write the runs that the example opens; matching increases distortion and lowers MMD."""
    monkeypatch.chdir(tmp_path)
    for objective in ("elbo", "wae-mmd"):
        call = ["--program", "autoencoder", "--latent-dim", "8", "--objective", objective, *TINY, "--epochs", "10"]
        assert inside("fit", *call).returncode == 0
    torch.set_default_dtype(torch.float32)
    exec(MATCH.replace("5000", "1000"), {"__name__": "example"})  # draws; all pairs of 5000 take seconds
    (first, plain), (second, matched) = (line.split() for line in capsys.readouterr().out.splitlines())
    assert (first, second) == ("elbo", "standard-wae-mmd")
    assert float(plain) > 1.5 * float(matched)
    assert abs(float(mmd(torch.randn(256, 8), torch.randn(1000, 8)))) < 0.02  # draws from the prior itself: MMD near 0


def test_factory_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is fitted. For orthogonal columns W and the exact posterior, each weight is N(x; b, W W' + s^2 I)."""
    (tmp_path / "ppca.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    ((_, call),) = [(name, call) for name, call in commands_of("scripts/README.md") if "ppca.py:factory" in call]
    result = inside("fit", *call, *TINY)
    assert result.returncode == 0, result.stderr

    torch.set_default_dtype(torch.float64)
    namespace: dict[str, Any] = {"__name__": "example"}
    exec(FACTORY, namespace)
    program, noise = namespace["PPCA"](6, 2), 0.7
    w = torch.linalg.qr(torch.randn(6, 2))[0] * torch.tensor([1.5, 0.5])
    variance = 1 / (1 + w.square().sum(0) / noise**2)
    with torch.no_grad():
        program.decoder.weight.copy_(w)
        program.encoder.weight.copy_(variance[:, None] * w.T / noise**2)
        program.encoder.bias.copy_(-program.encoder.weight @ program.decoder.bias)
        program.log_noise.copy_(torch.tensor(noise).log())
        program.log_scale.copy_(variance.sqrt().log())
    x = torch.randn(5, 2, 3)
    exact = MultivariateNormal(program.decoder.bias, w @ w.T + noise**2 * torch.eye(6)).log_prob(x.flatten(1))
    weights = pv.log_weights(program.model, program.guide, x, 4, seed=0)
    torch.testing.assert_close(weights, exact.expand(4, 5).detach())


@pytest.fixture
def arguments_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Yield the `Arguments` class of each script by name."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    yield {name: importlib.import_module(name).Arguments for name in SCRIPTS}
    for name in (*SCRIPTS, "baselines", "contenders", "many_fits", "measurements", "scaling", "scoring", "timing"):
        del sys.modules[name]


def test_every_command_parses(arguments_of: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its script's parser; for fit.py also by the check that the program has every flag that is set."""
    monkeypatch.chdir(tmp_path)
    calls = [(name, call) for document in DOCUMENTS for name, call in commands_of(document)]
    assert len(calls) > 40
    for name, call in calls:
        if call == ["--help"]:
            continue
        if "--data" in call and (data := call[call.index("--data") + 1]) not in pv.data.DATASETS:
            Path(data).touch()  # the user's own data must exist
        try:
            parsed = tyro.cli(arguments_of[name], args=call, config=(tyro.conf.FlagCreatePairsOff,))
        except SystemExit:
            pytest.fail(f"scripts/{name}.py does not understand {' '.join(call)}")
        if name == "fit":
            programs.check_flags(parsed.config)


def test_every_flag_exists(arguments_of: dict[str, Any]) -> None:
    of_torchrun = {"--max-restarts", "--nproc-per-node"}
    known = {
        "--help",
        "--version",
        *of_torchrun,
        *(flag for arguments in arguments_of.values() for flag in flags_of(arguments)),
    }
    spans = [(name, span) for name in DOCUMENTS for span in spans_of(name) if not span.startswith("pytest")]
    named = {(name, flag) for name, span in spans for flag in re.findall(r"(?<!\S)--[a-z][a-z-]*", span)}
    assert len(named) > 40
    assert {(name, flag) for name, flag in named if flag not in known} == set()


def test_every_link_resolves() -> None:
    links = [(name, path.resolve(), heading) for name in DOCUMENTS for path, heading in links_of(name)]
    assert [link for link in links if not link[1].exists()] == []
    assert [link for link in links if link[2] and link[2] not in headings_of(link[1])] == []
    assert {path for _, path, _ in links if path.suffix == ".png"} == set((ROOT / ".github").glob("*.png"))


def test_every_named_file_exists() -> None:
    """Relative to the root, or to the document."""
    pattern = r"(tests|contracts|pyro_vae|scripts)/[\w/]+\.\w+"
    named = {(name, span) for name in DOCUMENTS for span in spans_of(name) if re.fullmatch(pattern, span)}
    assert len(named) > 10
    missing = {(name, file) for name, file in named if not (ROOT / file).is_file()}
    assert {(name, file) for name, file in missing if not ((ROOT / name).parent / file).is_file()} == set()


def test_readme_is_short() -> None:
    assert len(text_of("README.md").splitlines()) <= 280
