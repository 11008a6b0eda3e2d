"""Steps that several processes share: the numbers of one process, and a refusal where images are coupled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.planted_nan import all_planted
from helpers.processes import run_together
from helpers.sharded_fits import BOUNDED, EXACT, LONG, REFUSED, outcome

from pyro_vae.runs import checkpoint

pytestmark = pytest.mark.host


def shared(size: int, folder: Path, *names: str) -> list[dict[str, Any]]:
    """Run fits in several processes, and return the results of each."""
    processes = run_together(size, "sharded_fits.py", folder, *names)
    assert [process.returncode for process in processes] == [0] * size, [process.stderr for process in processes]
    compared_in_part = "whether the program couples images has been checked for 4 of them" in processes[0].stderr
    assert compared_in_part == ("little memory" in names)
    return [checkpoint.load(folder / str(rank)) for rank in range(size)]


def check_exact(size: int, folder: Path, *names: str) -> None:
    """The sum over parts of a batch has other rounding errors than the whole; those of 40 steps are below 1e-10."""
    for results in shared(size, folder, *names):
        for name in names:
            found, expected = results[name], outcome((EXACT | BOUNDED | LONG)[name])
            assert found.keys() == expected.keys(), (name, found)
            assert found["recorded"] == (expected["recorded"] and name != "rejection"), name
            assert torch.equal(found["random"], expected["random"]), name
            for a, b in zip(found["epochs"], expected["epochs"], strict=True):
                assert a == pytest.approx(b, rel=1e-10, abs=1e-10, nan_ok=True), name
            torch.testing.assert_close(found["params"], expected["params"], rtol=1e-10, atol=1e-10)


# One for each part of the code.
FEW = ("recorded", "stl with dropout", "rejection", "early stopping", "late parameter", "little memory")


def test_three_processes_have_the_numbers_of_one(tmp_path: Path) -> None:
    """Batches of seven images, and a last one of one image, of which two processes have none."""
    check_exact(3, tmp_path, *FEW)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3, 4])
def test_other_numbers_of_processes_have_the_numbers_of_one(size: int, tmp_path: Path) -> None:
    check_exact(size, tmp_path, *EXACT, *LONG)


def test_programs_that_couple_images_are_rejected(tmp_path: Path) -> None:
    """In all processes, also if one has another random seed than the other."""
    for results in shared(2, tmp_path, *REFUSED, "other seeds: elbo"):
        for name, (_, reason) in REFUSED.items():
            assert reason in results[name]["error"], name
            assert "use one process" in results[name]["error"].lower()
        assert "of the processes differ" in results["other seeds: elbo"]["error"]


@pytest.mark.slow
def test_nonfinite_image_of_one_process_stops_or_rolls_back_all(tmp_path: Path) -> None:
    """One NaN image is in the rows of one process; all of them keep the weights before the step."""
    torch.set_default_dtype(torch.float64)
    processes = run_together(3, "planted_nan.py", tmp_path)
    assert [process.returncode for process in processes] == [0] * 3, processes
    expected = all_planted()
    assert {name: result["end"] for name, result in expected.items()} == {
        "stop": [12, 0],
        "once": [40, 1],
        "always": [12, 2],
    }
    for rank in range(3):
        results = checkpoint.load(tmp_path / str(rank))
        for name, result in results.items():
            assert (result["end"], result["error"]) == (expected[name]["end"], expected[name]["error"])
            torch.testing.assert_close(result["params"], expected[name]["params"], rtol=1e-10, atol=1e-10)
        for name, value in results["stop"]["params"].items():
            assert torch.equal(value, results["stop"]["before"][name])
            assert torch.isfinite(value).all()
