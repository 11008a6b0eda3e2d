"""The flags of the scripts as words: mistakes in one line, versions, and scripts interrupted while they start."""

from __future__ import annotations

import io
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import pytest
import tyro
from helpers.calls import ROOT, command, inside, with_default_sigint

from pyro_vae import config
from pyro_vae.command_line import fields_given
from pyro_vae.config import components

SCRIPTS = ("fit", "evaluate", "sample", "compare", "benchmark")
# Imports that take longer than parsing; none is needed for --help.
SLOW = {"matplotlib", "torchvision", "scipy", "sklearn", "pandas", "arviz", "h5py", "PIL", "sympy", "torch._dynamo"}

pytestmark = pytest.mark.host


@pytest.mark.parametrize(
    ("name", "flags", "words"),
    [
        ("fit", ["--prior", "bogus"], ["'bogus'", "'--prior'", *map(repr, components.PRIORS)]),
        ("fit", ["--device", "mps"], ["'mps'", "'auto', 'cpu', 'cuda'"]),
        ("fit", ["--objective", "iwea"], ["'iwea'", *map(repr, components.OBJECTIVES)]),
        ("fit", ["--data", "mnits"], ["'mnits'", "mnist", "digits"]),
        ("fit", ["--latent-dims", "3"], ["--latent-dims", "--latent-dim"]),
        ("fit", ["--latent_dims=3"], ["--latent_dims=3", "similar: --latent-dim"]),
        ("fit", ["--zzz"], ["--zzz. --help"]),
        ("fit", ["--epochs", "ten"], ["--epochs", "'ten'"]),
        ("fit", ["--learning-rate", "fast"], ["--learning-rate", "'fast'"]),
        ("fit", ["--latent-dim", "1.5"], ["--latent-dim", "'1.5'"]),
        ("fit", ["--latent-dim"], ["Missing value", "--latent-dim"]),
        ("fit", ["--splits", "0.5", "0.5"], ["Missing value", "--splits"]),
        ("fit", ["runs/mine"], ["runs/mine"]),
        ("compare", ["--prior", "vamp", "--systems", "vae", "veal"], ["'veal'", "vae-nsf"]),
        ("evaluate", ["RUN", "--resume"], ["--resume"]),
        ("evaluate", ["RUN", "--compile", "auto"], ["'auto'", "'on'", "'off'"]),
        ("sample", [], ["RUN"]),
        ("benchmark", ["--measure", "everything"], ["'everything'", "'steps'"]),
    ],
)
def test_mistake_is_one_line_with_the_names_there_are(
    name: str, flags: Sequence[str], words: Sequence[str], refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")  # the benchmark imports its neighbors
    refused([sys.executable, str(ROOT / "scripts" / f"{name}.py"), *flags], *words)


@pytest.mark.parametrize("columns", ["20", "80", "400"])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_mistake_is_shown_on_every_terminal(
    columns: str, encoding: str, refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its width and its characters, of which the parser draws a frame."""
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    refused([sys.executable, str(ROOT / "scripts" / "fit.py"), "--prior", "bogus"], "bogus", "realnvp", "--help")


@pytest.mark.parametrize("name", SCRIPTS)
def test_version_is_shown_without_anything_else(name: str) -> None:
    result = inside(name, "--version")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == ", ".join(f"{each} {version(each)}" for each in ("pyro_vae", "torch", "pyro-ppl")) + "\n"
    assert "--version" in inside(name, "--help").stdout


def test_every_way_to_write_a_flag_is_found() -> None:
    """As the parser reads them: the fields that differ from their defaults are those that are given."""
    words = [
        "--latent-dim",
        "3",
        "--hidden_dim=4",
        "--skip-bad",
        "--data-root",
        "a--b",
        "--splits",
        "0.5",
        "0.25",
        "0.25",
    ]
    parsed = tyro.cli(tyro.conf.OmitArgPrefixes[tyro.conf.FlagCreatePairsOff[config.ConfigFlags]], args=words)
    different = {name for name, value in vars(parsed).items() if value != getattr(config.Config, name)}
    assert fields_given(words) == different == {"latent_dim", "hidden_dim", "skip_bad", "data_root", "splits"}


def test_help_imports_no_library_that_it_does_not_need() -> None:
    """torch and Pyro define the choices of the flags; figures, tables and compilers are for those who use them."""
    calls = "".join(f"run({name!r})\n" for name in SCRIPTS)
    code = f"""
import io, runpy, sys
from contextlib import redirect_stdout, suppress
sys.path.insert(0, {str(ROOT / "scripts")!r})
def run(name):
    sys.argv = [name, "--help"]
    with redirect_stdout(io.StringIO()), suppress(SystemExit):
        runpy.run_path({str(ROOT / "scripts")!r} + f"/{{name}}.py", run_name="__main__")
{calls}
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not SLOW & set(done.stdout.split())


@pytest.mark.parametrize("name", SCRIPTS)
def test_interrupt_during_the_imports_ends_a_script_without_a_traceback(name: str, tmp_path: Path) -> None:
    """A module torch that takes its time: the signal ends the process, which shells report as status 130."""
    (tmp_path / "torch.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n")
    call = with_default_sigint(command(name, "RUN"))
    done = subprocess.run(call, capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)}, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_interrupt_that_the_shell_ignores_stays_ignored(tmp_path: Path) -> None:
    """As for a job in the background."""
    source = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise SystemExit('went on')\n"
    (tmp_path / "torch.py").write_text(source)
    call = [re.sub("SIG_DFL", "SIG_IGN", word) for word in with_default_sigint(command("fit"))]
    done = subprocess.run(call, capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)}, check=False)
    assert done.stderr == "went on\n"
