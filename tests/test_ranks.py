"""Division of work among processes: results in order, the errors of one on all, and the death of one."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers.calls import ROOT, command
from helpers.fixtures import Refused
from helpers.processes import run_together

from pyro_vae import parallel, ranks, torchrun
from pyro_vae.errors import OutOfMemoryError, RanksError, UserError

pytestmark = pytest.mark.host

GROUP = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.fixture
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in GROUP.items():
        monkeypatch.setenv(name, value)


def test_three_processes_divide_work_and_share_results_and_errors(
    tmp_path: Path, promised: Callable[[str], None]
) -> None:
    """The last process is then killed, which ends the others in one line each."""
    processes = run_together(3, "rank_work.py", tmp_path)
    assert [process.returncode for process in processes] == [1, 1, -signal.SIGKILL], processes
    for process in processes[:2]:
        *others, line = process.stderr.splitlines()
        assert line.startswith("error: Another process has ended, or cannot be reached")
        # Output and warnings come from the first process only.
        assert ("warning of a library" in "".join(others)) is (process is processes[0])
        assert ("warning of the package" in "".join(others)) is (process is processes[0])
    assert [process.stdout for process in processes] == ["output\n", "", ""]
    by_rank = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    for rank, found in enumerate(by_rank):
        assert found["rank"] == [rank, 3, rank == 0]
        assert found["gather"] == [[0, 0], [1, 1], [2, 2]]
        assert (found["broadcast"], found["on_first"], found["in_turn"]) == ("from 0", "by 0", rank)
        assert found["sum"] == [0, 6, 12]  # (1 + 2 + 3) * (0, 1, 2)
        assert found["parts"] == [[part, part % 3] for part in range(7)]
        assert (found["fewer"], found["none"]) == ([25], [])
        assert "diverged: abs, part 0, on_first" in found["diverged"]
        # Part 4 fails on rank 1: no process begins a part after the parts 3, 4 and 5.
        errors = found["errors"]
        assert [error["computed"] for error in errors.values()] == [[rank, rank + 3]] * 5
        first = {name: (error["kinds"][0], error["message"]) for name, error in errors.items()}
        assert first.pop("nonfinite") == (
            "NonFiniteError",
            "Non-finite loss or gradient at step 7 (counted from 0); the weights are those before that step. Lower the "
            "learning rate, or check the data for extreme values.",
        )
        assert errors["nonfinite"]["notes"] == ["That is batch 1."]
        # An error with a tensor arrives as its base class, and the scripts map both to the same status.
        assert first.pop("user") == ("TwoArgumentsError" if rank == 1 else "UserError", "bad: [1.0, 1.0]")
        assert first == {
            "memory": ("OutOfMemoryError", "try less"),
            "file": ("OSError", "[Errno 28] No space left: 'file'"),
            "bug": ("KeyError", "'z'"),
        }
    promised("an error of one process of three reaches all: 5 of 5 kinds; a killed process ends the others")


def test_one_process_is_lazy_and_needs_no_group() -> None:
    seen: list[int] = []

    def parts() -> Iterator[int]:
        for part in range(3):
            seen.append(part)
            yield part

    with ranks.process_group("cpu"):
        results = parallel.map_parts(lambda part: part**2, parts())
        assert (next(results), seen) == (0, [0])
        assert (list(results), seen) == ([1, 4], [0, 1, 2])
        assert (ranks.rank(), ranks.size(), ranks.is_first()) == (0, 1, True)
        assert (ranks.gather(3), ranks.broadcast(3), parallel.on_first(lambda: 3)) == ([3], 3, 3)
        numbers = torch.ones(2)
        ranks.sum_flat(numbers)
        assert numbers.tolist() == [1, 1]


@pytest.mark.parametrize("script", ["sample", "benchmark"])
def test_scripts_that_need_one_process_refuse_several(
    script: str, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    for name, value in {**GROUP, "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))  # where a script finds its neighbors
    refused(command(script), f"{script}.py under torchrun is not supported")


@pytest.mark.usefixtures("second_of_two")
def test_process_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(RanksError, match="start at most one per GPU"), ranks.process_group("cuda"):
        pass


@pytest.mark.usefixtures("second_of_two")
def test_error_that_all_processes_raise_is_printed_by_the_first() -> None:
    def seconds(error: Exception, raised_by_all: bool | None = None) -> float | None:
        if raised_by_all is not None:
            error.raised_by_all = raised_by_all  # type: ignore[attr-defined]
        return torchrun.seconds_to_print(error)

    assert not torchrun.prints()
    assert seconds(UserError(), True) is None
    assert seconds(OutOfMemoryError(), False) == 0  # this process alone has it
    assert (seconds(UserError()) or 0) > (seconds(RanksError(), False) or 0) > 0


@pytest.mark.usefixtures("second_of_two")
def test_process_that_works_alone_has_its_share_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8))
    for name, value in {"LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "1", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    environment = torchrun.single_process_environment()
    assert not {*GROUP, "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID"} & environment.keys()
    assert (environment["OMP_NUM_THREADS"], environment["CUDA_VISIBLE_DEVICES"]) == ("4", "6")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # set by the user
    assert torchrun.single_process_environment()["OMP_NUM_THREADS"] == "3"
