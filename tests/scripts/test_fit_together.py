"""fit.py in several processes: the run folder of one process, however the processes end and however many resume it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.bits import assert_same, untimed
from helpers.calls import DEVICE, ROOT, TINY, inside
from helpers.processes import own_lines, run_torchrun

from pyro_vae.runs import Checkpoints, RunFolder
from pyro_vae.runs.netcdf import read_netcdf

FIT = ROOT / "scripts" / "fit.py"
FAULTY = ROOT / "tests" / "helpers" / "faulty_fit.py"
ROUNDING = 1e-5  # of sums over parts of a batch, after the steps of a fit in float32
STEPS_OF_AN_EPOCH = 3
MILESTONE = 15  # steps between the checkpoints of 100 epochs that do not depend on time


def numbers(value: Any, name: str = "") -> dict[str, Any]:
    """Return the leaves of JSON values by path, without times."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {path: leaf for key, each in items for path, leaf in numbers(each, f"{name}/{key}").items()}
    return {} if "seconds" in name else {name: value}


def assert_same_run(found: Path, expected: Path) -> None:
    """Assert that two run folders have the same files, and the same numbers up to rounding."""
    assert contents(found) == contents(expected)
    for read in (lambda path: RunFolder(path).metrics(), lambda path: json.loads((path / "summary.json").read_text())):
        one, two = (numbers(read(path)) for path in (found, expected))
        assert one.keys() == two.keys()
        for name, value in two.items():
            # k-hat is a fit to the largest weights, which magnifies rounding.
            rounding = 100 * ROUNDING if "khat" in name else ROUNDING
            assert one[name] == (pytest.approx(value, rel=rounding) if isinstance(value, float) else value), name
    one, two = (read_netcdf(path / "scores.nc") for path in (found, expected))
    assert one.keys() == two.keys()
    for name in one:  # k-hat is a fit to the largest weights
        np.testing.assert_allclose(one[name], two[name], rtol=1e-2 if name == "khat" else 1e-3, err_msg=name)
    step, state = Checkpoints(found / "checkpoints", RunFolder(found).config()).newest()
    assert step == state["svi"]["steps"] == STEPS_OF_AN_EPOCH * len(RunFolder(found).metrics())


def contents(path: Path) -> set[str]:
    """Return the names of the files of a run; which checkpoints exist depends on interruptions."""
    files = {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()}
    return {name for name in files if not name.startswith("checkpoints/")}


def fit(size: int, folder: Path, *flags: object, **options: Any) -> tuple[int, str, list[str]]:
    """Run fit.py in several processes; return its status, its output, and the lines that it printed to stderr."""
    result = run_torchrun(size, FIT, *TINY, "--device", DEVICE, "--out", folder, *flags, **options)
    return result.returncode, result.stdout, own_lines(result.stderr)


def faulty(
    what: str, where: object, rank: int, folder: Path, *flags: object, size: int = 3, **options: Any
) -> tuple[int, list[str]]:
    """Run fit.py in several processes, of which one fails; return its status and the lines printed to stderr."""
    arguments = [FAULTY, what, where, rank, *TINY, "--device", DEVICE, "--out", folder, *flags]
    result = run_torchrun(size, *arguments, **options)
    return result.returncode, own_lines(result.stderr)


def test_two_processes_write_the_run_of_one(tiny_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = run_torchrun(2, FIT, *TINY, "--device", DEVICE, "--out", folder)
    assert result.returncode == 0, result.stderr
    assert_same_run(folder, tiny_run)
    for words in ("log p(x) is a lower bound", "written to ", "MNIST: "):
        assert result.stdout.count(words) == 1
    assert "Traceback" not in result.stderr


def test_processes_divide_seeds(tiny_run: Path, tmp_path: Path) -> None:
    """Each of two processes fits a seed; one prints the table of both."""
    folder, solo = tmp_path / "run", tmp_path / "solo"
    status, output, lines = fit(2, folder, "--seeds", 2)
    assert (status, lines) == (0, [])
    assert "log p(x) over 2 seeds" in output
    assert output.count("written to ") == 1
    assert f"written to {folder}, {folder}-seed1" in output
    assert inside("fit", *TINY, "--seed", 1, "--out", solo).returncode == 0
    assert_same_run(folder, tiny_run)
    assert_same_run(tmp_path / "run-seed1", solo)


@pytest.mark.slow
def test_seeds_of_several_processes_resume_in_one(tiny_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    status, lines = faulty("terminate", "4", 1, folder, "--seeds", 3, size=2)
    assert status == 1
    assert len(lines) == 1  # the other one is stopped by torchrun, or waits for this one at the end
    resumed = inside("fit", *TINY, "--seeds", 3, "--out", folder, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    expected = shutil.copytree(tiny_run, tmp_path / "expected")
    for path in (folder, expected):  # the first process may have been stopped while it drew its figures
        shutil.rmtree(path / "figures", ignore_errors=True)
    assert_same_run(folder, expected)


FAULTS = [
    pytest.param("kill", "start", 1, "Another process has ended", id="killed before the folder exists"),
    pytest.param("kill", "0", 0, "Another process has ended", id="killed in the first step"),
    pytest.param("kill", "5", 2, "Another process has ended", id="killed in the middle"),
    pytest.param("kill", "save", 0, "Another process has ended", id="killed while it saves a checkpoint"),
    pytest.param("kill", "scores", 1, "", id="killed in the scores"),
    pytest.param("error", "start", 2, "planted", id="error before the folder exists"),
    pytest.param("error", "4", 1, "planted", id="error in a step"),
    pytest.param("disk", "save", 0, "No space left on device", id="full disk"),
    pytest.param("interrupt", "start", 1, "Another process has ended", id="interrupted alone"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("what", "where", "rank", "message"), FAULTS)
def test_failure_of_one_process_ends_all_in_one_line(
    what: str, where: str, rank: int, message: str, tiny_run: Path, tmp_path: Path
) -> None:
    """The run then resumes to the numbers of an uninterrupted one, in one process or in two."""
    folder = tmp_path / "run"
    status, lines = faulty(what, where, rank, folder, "--checkpoint-seconds", 0)
    assert status == 1
    assert len(lines) == 1, lines
    assert message in lines[0]
    assert folder.exists() == (where not in ("start", "0"))  # it is created after the first step
    if rank == 1:
        resumed = inside("fit", *TINY, "--out", folder, "--resume")
        assert resumed.returncode == 0, resumed.stderr
    else:
        status, _, lines = fit(2, folder, "--resume")
        assert (status, lines) == (0, [])
    assert_same_run(folder, tiny_run)


@pytest.mark.slow
def test_run_of_two_processes_resumes_in_one_and_in_three(tiny_run: Path, tmp_path: Path) -> None:
    status, lines = faulty("terminate", "4", 1, tmp_path / "run")
    assert status == 1  # as torchrun reports it
    assert lines == ["stopped; continue with --resume"]
    run = RunFolder(tmp_path / "run")
    assert len(run.metrics()) == 1
    assert sorted(Checkpoints(run.checkpoints, run.config()).paths()) == [3, 5]  # a milestone, and the stop
    shutil.copytree(tmp_path / "run", tmp_path / "three")
    assert inside("fit", *TINY, "--out", tmp_path / "run", "--resume").returncode == 0
    status, _, lines = fit(3, tmp_path / "three", "--resume")
    assert (status, lines) == (0, [])
    for name in ("run", "three"):
        assert_same_run(tmp_path / name, tiny_run)
    # A run that is finished, and one that another call would replace.
    status, output, lines = fit(2, tmp_path / "run", "--resume")
    assert (status, output, lines) == (0, f"{tmp_path / 'run'} is finished; nothing to resume.\n", [])
    status, _, (line,) = fit(2, tmp_path / "run")
    assert "exists; add --resume or --overwrite" in line
    assert status == 1


LONGER = ("--epochs", 100, "--checkpoint-seconds", 3600)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes with 300 steps."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    status, _, lines = fit(2, folder, *LONGER)
    assert (status, lines) == (0, [])
    return folder


def final(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the last state of a run and its epochs, without times."""
    run = RunFolder(folder)
    _, state = Checkpoints(run.checkpoints, run.config()).newest()
    return untimed(state), [{**line, "seconds": 0.0} for line in run.metrics()]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["terminate", "stop", "stop-all"])
def test_sigterm_leaves_one_checkpoint_of_all_processes(
    what: str, uninterrupted: Path, tmp_path: Path, promised: Callable[[str], None]
) -> None:
    """To one process, to torchrun, or to both; the processes then end the run to the bits of an uninterrupted one."""
    folder, flags = tmp_path / "run", (*LONGER, "--resume")
    checkpoints = Checkpoints(folder / "checkpoints", {})
    for step in (40, 170):
        before = set(checkpoints.paths())
        status, lines = faulty(what, step, 1, folder, *flags, size=2)
        assert status != 0
        assert lines == ["stopped; continue with --resume"]
        last, state = Checkpoints(checkpoints.folder, RunFolder(folder).config()).newest()
        assert last == state["svi"]["steps"] == max(checkpoints.paths()) > step
        assert all(path.name.startswith("step-") for path in checkpoints.folder.iterdir())  # no unfinished file
        stops = {number for number in set(checkpoints.paths()) - before if number != 1 and number % MILESTONE}
        assert stops <= {last}
        assert (last - 1) // STEPS_OF_AN_EPOCH <= len(RunFolder(folder).metrics()) <= last // STEPS_OF_AN_EPOCH
    status, _, lines = fit(2, folder, *flags)
    assert (status, lines) == (0, [])
    assert contents(folder) == contents(uninterrupted)
    found, expected = final(folder), final(uninterrupted)
    assert_same(found[0], expected[0])
    assert found[1] == expected[1]
    promised(f"2 x SIGTERM to processes of torchrun ({what}): one checkpoint each, and resumed to the same bits")


@pytest.mark.slow
def test_torchrun_restarts_a_run_that_was_killed(tiny_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    status, lines = faulty("kill", "5", 1, folder, "--resume", "--checkpoint-seconds", 0, restarts=1)
    assert status == 0
    assert len(lines) == 1
    assert_same_run(folder, tiny_run)
    status, _, (line, *_) = fit(2, tmp_path / "other", restarts=1)
    assert "--max-restarts" in line
    assert status == 1
    assert not (tmp_path / "other").exists()


PROGRAM_ERROR = """
def factory(config, images):
    raise KeyError("the error of a program")
"""


@pytest.mark.slow
def test_error_of_all_processes_is_printed_once(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM_ERROR)
    calls = {
        "KeyError: ": ["--program", f"{program}:factory"],
        "A batch of 7000": ["--batch-size", 7000],
        "Non-finite loss or gradient at step": ["--learning-rate", "9e5"],
    }
    for message, flags in calls.items():
        result = run_torchrun(2, FIT, *TINY, "--device", DEVICE, "--out", tmp_path / "run", "--overwrite", *flags)
        assert result.returncode == 1
        assert result.stderr.count(message) == 1, result.stderr
