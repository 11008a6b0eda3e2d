"""evaluate.py and sample.py on runs that cannot be written to, and on several runs of which some are custom."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.calls import TINY, command, inside
from helpers.program_files import NET

from pyro_vae.errors import UserError
from pyro_vae.runs import RunFolder
from pyro_vae.runs.load import choose_program

pytestmark = pytest.mark.usefixtures("short_annealing")


def content(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def log_likelihood(folder: Path) -> float:
    return float(json.loads((folder / "summary.json").read_text())["log_likelihood"])


@pytest.fixture
def locked(run: Path) -> Path:
    """Return a run whose folders of results cannot be created, whoever runs the tests."""
    for name in ("evaluation", "samples"):
        (run / name).write_text("in the way")
    return run


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return a run of a custom program, and its --program."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "net.py").write_text(NET)
    program = f"{folder / 'net.py'}:factory"
    assert inside("fit", *TINY, "--program", program, "--out", folder / "run").returncode == 0
    return folder / "run", program


def test_evaluation_is_written_to_out_alone(locked: Path, tmp_path: Path, refused: Callable[..., None]) -> None:
    before, out = content(locked), tmp_path / "out"
    refused(command("evaluate", locked), "evaluation cannot be written", "--out")
    result = inside("evaluate", locked, "--out", out, "--proposal", "guide")
    assert result.returncode == 0, result.stderr
    assert log_likelihood(out) == pytest.approx(log_likelihood(locked), rel=1e-6)
    assert {path.name for path in (out / "figures").iterdir()} >= {"bounds.png", "rate_distortion.png", "khat.png"}
    assert content(locked) == before


def test_samples_are_written_to_out_alone(locked: Path, tmp_path: Path, refused: Callable[..., None]) -> None:
    before, out = content(locked), tmp_path / "out"
    refused(command("sample", locked), "samples cannot be written", "--out")
    result = inside("sample", locked, "--out", out)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in out.iterdir()} >= {"prior.png", "reconstructions.png", "traversals.gif"}
    assert content(locked) == before


def test_results_do_not_replace_those_of_a_run(run: Path, refused: Callable[..., None]) -> None:
    before = content(run)
    refused(command("evaluate", run, "--out", run), "is a run folder")
    refused(command("sample", run, "--out", run), "is a run folder")
    assert content(run) == before


def test_results_do_not_replace_other_files(run: Path, tmp_path: Path, refused: Callable[..., None]) -> None:
    """A former call's results are replaced, and a folder of other files is left as it is."""
    out, mine = tmp_path / "out", tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.csv").write_text("mine")
    for script in ("evaluate", "sample"):
        refused(command(script, run, "--out", mine), "other files")
    assert content(mine) == {Path("notes.csv"): b"mine"}
    for _ in range(2):
        assert inside("sample", run, "--out", out).returncode == 0


def test_custom_and_built_in_programs_are_evaluated_together(
    own: tuple[Path, str], run: Path, tmp_path: Path, refused: Callable[..., None]
) -> None:
    """--program names the custom one; each result has a folder of its own in --out."""
    folder, program = own
    result = inside("evaluate", folder, run, "--program", program, "--out", tmp_path / "out", "--proposal", "guide")
    assert result.returncode == 0, result.stderr
    for each in (folder, run):
        assert log_likelihood(tmp_path / "out" / each.name) == pytest.approx(log_likelihood(each), rel=1e-6)
    refused(command("evaluate", folder, run), "net.py:factory", "repeat that flag")
    refused(command("evaluate", run, "--program", program), "leave it out")


def test_program_applies_to_the_custom_runs_only(own: tuple[Path, str], run: Path) -> None:
    folders, program = [RunFolder(run), RunFolder(own[0])], own[1]
    assert choose_program(folders, [program]) == [{}, {"program": program}]
    with pytest.raises(UserError, match="no run was fitted with its factory"):
        choose_program(folders, [program.replace(":factory", ":other")])


def test_mistyped_run_shows_the_runs_there_are(run: Path, refused: Callable[..., None]) -> None:
    shutil.copytree(run, run.with_name("iwae"))
    for script in ("evaluate", "sample"):
        refused(command(script, run.with_name("elbow")), "elbow is not a run folder", "are elbo, iwae")
