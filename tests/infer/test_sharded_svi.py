"""Steps that several processes share: the numbers of one process, and a refusal where images are coupled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.planted_nan import all_planted
from helpers.processes import run_together
from helpers.sharded_fits import BOUNDED, COMPILED, EXACT, LONG, REFUSED, dtype_of, outcome

from pyro_vae.runs import checkpoint

pytestmark = pytest.mark.host


def shared(size: int, folder: Path, *names: str) -> list[dict[str, Any]]:
    """Run fits in several processes, and return the results of each."""
    processes = run_together(size, "sharded_fits.py", folder, *names)
    assert [process.returncode for process in processes] == [0] * size, [process.stderr for process in processes]
    compared_in_part = "whether the program couples images has been checked for 4 of them" in processes[0].stderr
    assert compared_in_part == ("little memory" in names)
    return [checkpoint.load(folder / str(rank)) for rank in range(size)]


def relative_differences(found: dict[str, Any], expected: dict[str, Any]) -> list[float]:
    """Return the relative differences of two fits, of the metrics of each epoch and of each tensor of parameters."""
    pairs = [
        (epoch[name], value)
        for epoch, other in zip(found["epochs"], expected["epochs"], strict=True)
        for name, value in other.items()
    ]
    assert [a for a, b in pairs if not isinstance(b, float)] == [b for _, b in pairs if not isinstance(b, float)]
    tensors = [
        (torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64))
        for a, b in pairs
        if isinstance(b, float)
    ]
    tensors += [(found["params"][name], p) for name, p in expected["params"].items()]
    return [float((a - b).norm() / b.norm()) for a, b in tensors if not torch.equal(a, b)]  # NaN if b is 0


def check_exact(size: int, folder: Path, *names: str) -> str:
    """The sum over parts of a batch has other rounding errors than the whole; return a line that says how large."""
    largest = dict.fromkeys(TOLERANCES, 0.0)
    every = shared(size, folder, *names)
    for name in names:
        dtype = dtype_of(name)
        expected = alone(name)
        for results in every:
            found = results[name]
            assert found.keys() == expected.keys(), (name, found)
            assert found["recorded"] == (expected["recorded"] and not name.startswith("rejection")), name
            assert torch.equal(found["random"], expected["random"]), name
            differences = relative_differences(found, expected)
            assert all(difference <= TOLERANCES[dtype] for difference in differences), (name, differences)
            largest[dtype] = max(largest[dtype], *differences)
    words = ", ".join(f"{value:.0e} in {dtype}" for dtype, value in largest.items() if value)
    return f"losses and weights of {len(names)} fits by {size} processes are those of one within {words}"


def alone(name: str) -> dict[str, Any]:
    """Return the results of a fit in this process."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype_of(name))
    try:
        return outcome((EXACT | BOUNDED | COMPILED | LONG)[name])
    finally:
        torch.set_default_dtype(default)


TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}  # relative
# One for each part of the code.
FEW = (
    "recorded, 200 steps",
    "stl with dropout, 200 steps, float32",
    "rejection",
    "early stopping",
    "late parameter, run by Pyro",
    "little memory",
)


def test_three_processes_have_the_numbers_of_one(tmp_path: Path, promised: Callable[[str], None]) -> None:
    """Batches of seven images, and a last one of one image, of which two processes have none."""
    promised(check_exact(3, tmp_path, *FEW))


@pytest.mark.slow
@pytest.mark.parametrize(("size", "dtype"), [(2, torch.float64), (3, torch.float32), (4, torch.float64)])
def test_all_programs_have_the_numbers_of_one_process(
    size: int, dtype: torch.dtype, tmp_path: Path, promised: Callable[[str], None]
) -> None:
    every = (f"{name}, 200 steps" for name in (*EXACT, *COMPILED))
    names = [name if dtype == torch.float64 else f"{name}, float32" for name in every]
    promised(check_exact(size, tmp_path, *names))


def test_programs_that_couple_images_are_rejected(tmp_path: Path, promised: Callable[[str], None]) -> None:
    """In all processes, also if one has another random seed than the other."""
    for results in shared(2, tmp_path, *REFUSED, "other seeds: elbo"):
        for name, (_, reason) in REFUSED.items():
            assert reason in results[name]["error"], name
            assert "use one process" in results[name]["error"].lower()
        assert "of the processes differ" in results["other seeds: elbo"]["error"]
    promised(f"programs and objectives that couple images are refused by 2 processes: {len(REFUSED)} of {len(REFUSED)}")


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
