"""Your own programs: flags that they do not read are refused, and files that have changed since the fit are named."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from helpers.calls import TINY, PopenInProcess, command, inside
from helpers.program_files import NET

from pyro_vae.config import Config
from pyro_vae.config.fields_read import WatchedConfig
from pyro_vae.errors import UserError
from pyro_vae.runs import RunFolder, check_flags_read, load_images
from pyro_vae.runs.own_program import save_digests, warn_if_changed

FACTORIES = """

def by_getattr(config, images):
    return Net(getattr(config, "prior") == "laplace")


def by_vars(config, images):
    return Net(len(vars(config)["prior"]))


def later(config, images):
    net = Net(0)
    run = net.model
    net.model = lambda x: run(x + 0 * len(config.prior))
    return net
"""
TOO = ["--epochs", 1, "--num-samples", 5]


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Return the path of a program that imports its neighbor."""
    path = tmp_path / "programs" / "mine.py"
    path.parent.mkdir()
    path.write_text("from neighbor import SIZE\n" + NET + FACTORIES)
    path.with_name("neighbor.py").write_text("SIZE = 4\n")
    return path


def test_reads_of_fields_are_recorded() -> None:
    for read, names in (
        (lambda config: config.prior, {"prior"}),
        (lambda config: (config.seed, config.epochs), {"seed", "epochs"}),
        (asdict, set(Config().to_json())),
        (vars, set(Config().to_json())),
        (lambda config: replace(config, seed=1), set(Config().to_json()) - {"seed"}),
        (lambda config: None, set()),
    ):
        watched = WatchedConfig.of(Config(prior="laplace"))
        read(watched)
        assert watched.read >= names
        assert watched.read & set(Config().to_json()) == names
        assert (watched.prior, watched.seed) == ("laplace", 0)


@pytest.mark.parametrize("factory", ["factory", "by_getattr", "by_vars", "later"])
def test_unread_flags_are_refused(factory: str, mine: Path) -> None:
    """A factory may read its configuration in any way, even when the program runs; random streams are unchanged."""
    config = Config(program=f"{mine}:{factory}", prior="laplace").resolve()
    images, before = load_images(config), torch.get_rng_state()
    if factory == "factory":
        with pytest.raises(UserError, match="--prior has no effect"):
            check_flags_read(config, images, ["seed", "prior"])
    else:
        check_flags_read(config, images, ["prior"])
    check_flags_read(config, images, [])
    assert torch.equal(torch.get_rng_state(), before)


def test_scripts_refuse_unread_flags_before_training(mine: Path, tmp_path: Path, refused: Callable[..., None]) -> None:
    """Otherwise the rows of a comparison would be the same run under two names."""
    program = ["--program", f"{mine}:factory", *TINY, "--out", tmp_path / "out"]
    refused(command("compare", "--priors", "standard", "laplace", *program), "--prior has no effect")
    refused(command("fit", "--net", "conv", *program), "--net has no effect")
    refused(command("fit", "--latent-dim", 3, *program), "--latent-dim has no effect")
    assert not (tmp_path / "out").exists()


def test_changed_files_are_named(mine: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By evaluate.py and by fit.py --resume; a comment counts, a moved file does not."""
    run, program = tmp_path / "run", ["--program", f"{mine}:factory"]
    flags = [*TINY, *TOO, "--out", run]
    assert inside("fit", *flags, *program).returncode == 0
    assert json.loads((run / "program.json").read_text()).keys() == {"the program file", "neighbor.py"}

    def words(*call: object) -> str:
        caplog.clear()
        assert inside(*call).returncode == 0  # type: ignore[arg-type]
        return caplog.text

    moved = shutil.copytree(mine.parent, tmp_path / "moved") / "mine.py"
    assert "other contents" not in words("evaluate", run, "--program", f"{moved}:factory")
    moved.rename(moved.with_name("renamed.py"))
    assert "other contents" not in words("evaluate", run, "--program", f"{moved.with_name('renamed.py')}:factory")
    mine.with_name("neighbor.py").write_text("SIZE = 5\n")
    assert f"{run} was fitted with other contents of neighbor.py." in words("evaluate", run, *program)
    mine.write_text(mine.read_text() + "# a comment\n")
    (run / "summary.json").unlink()
    assert "other contents of neighbor.py, the program file." in words("fit", *flags, *program, "--resume")


@pytest.mark.parametrize("content", ["", "[1]", "[" * 100_000])
def test_damaged_digests_are_named(content: str, mine: Path, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    save_digests(folder, f"{mine}:factory")
    warn_if_changed(folder, f"{mine}:factory")
    (tmp_path / "program.json").write_text(content)
    with pytest.raises(UserError, match=r"program.json is not a list of program files"):
        warn_if_changed(folder, f"{mine}:factory")


def test_programs_of_several_users_are_evaluated_and_compared(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Next to one of the package. A program that no run was fitted with is refused."""
    monkeypatch.setattr(subprocess, "Popen", PopenInProcess)
    theirs = mine.with_name("theirs.py")
    theirs.write_text(NET.replace("def factory", "def make"))
    programs = {"mine": f"{mine}:factory", "theirs": f"{theirs}:make", "vae": "vae"}
    runs = {name: tmp_path / name for name in programs}
    for name, program in programs.items():
        assert inside("fit", *TINY, *TOO, "--program", program, "--out", runs[name]).returncode == 0
    given = ["--program", programs["mine"], programs["theirs"]]
    evaluated = inside("evaluate", *runs.values(), *given, "--num-samples", 7)
    assert evaluated.returncode == 0, evaluated.stderr
    refused = inside("evaluate", runs["mine"], runs["vae"], *given)
    assert refused.returncode == 2
    assert f"--program {programs['theirs']}: no run was fitted with its factory" in refused.stderr
    found = {}
    for below in ("", "evaluation"):
        out = tmp_path / f"out{below}"
        compared = inside("compare", *(run / below for run in runs.values()), "--out", out)
        assert compared.returncode == 0, compared.stderr
        found[below] = {row["name"].split("/")[0]: row for row in json.loads((out / "comparison.json").read_text())}
        assert found[below].keys() == programs.keys()
        for name, row in found[below].items():
            summary = json.loads((runs[name] / below / "summary.json").read_text())
            assert row["log_likelihood"] == pytest.approx(summary["log_likelihood"])
            assert summary["num_samples"] == (7 if below else 5)
    mixed = inside("compare", runs["mine"], runs["vae"] / "evaluation", "--out", tmp_path / "mixed")
    assert mixed.returncode == 2
    assert "importance samples per image" in mixed.stderr
