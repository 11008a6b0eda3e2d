"""Steps whose batch is computed in a fixed number of parts: the same bits in any number of processes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.bits import assert_same
from helpers.processes import run_together
from helpers.sharded_fits import LONG, SHARDS, SHARDS_COMPILED, SHARDS_REFUSED, outcome

from pyro_vae.infer import Fit, FitMany
from pyro_vae.infer.exchange import Exchange, Part
from pyro_vae.runs import checkpoint

pytestmark = pytest.mark.host

RESUMED = ("shards, float32", "shards, random start")


def results(size: int, folder: Path, *names: str) -> list[dict[str, Any]]:
    """Run fits in several processes of one thread, and return the results of each."""
    folder.mkdir(exist_ok=True)
    processes = run_together(size, "sharded_fits.py", folder, *names)
    assert [process.returncode for process in processes] == [0] * size, processes[0].stderr
    return [checkpoint.load(folder / str(rank)) for rank in range(size)]


def check_same(found: dict[str, Any], expected: dict[str, Any], name: str) -> None:
    """A fit that has been resumed has only its later epochs."""
    assert "error" not in found, found
    assert found["recorded"] is ("run by Pyro" not in name), name
    assert len(found["epochs"]) > 0
    assert_same(found, {**expected, "epochs": expected["epochs"][-len(found["epochs"]) :]})


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a single process, including states in the middle of an epoch."""
    folder = tmp_path_factory.mktemp("shards") / "one"
    results(1, folder, *SHARDS, *(f"pause: {name}" for name in RESUMED))
    return folder / "0"


def test_three_processes_change_no_bit_also_if_they_resume_a_fit_of_one(
    one: Path, tmp_path: Path, promised: Callable[[str], None]
) -> None:
    shutil.copy(one, tmp_path / "paused")
    expected = checkpoint.load(one)
    for found in results(3, tmp_path, *SHARDS, *(f"resume: {name}" for name in RESUMED)):
        for name, values in found.items():
            check_same(values, expected[name.removeprefix("resume: ")], name)
    number = len(SHARDS) + len(RESUMED)
    promised(f"fits in 4 shards by 3 processes end with the bits of one: {number} of {number}")


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_other_numbers_of_processes_change_no_bit(one: Path, size: int, tmp_path: Path) -> None:
    expected = checkpoint.load(one)
    for found in results(size, tmp_path, *SHARDS):
        for name in SHARDS:
            check_same(found[name], expected[name], name)


@pytest.mark.slow
def test_compiled_parts_have_the_same_bits(tmp_path: Path) -> None:
    """Also if a fit of one process is resumed in three."""
    compiled = tuple(SHARDS_COMPILED)
    (expected,) = results(1, tmp_path / "one", *compiled, *(f"pause: {name}" for name in compiled))
    for size in (2, 3):
        (tmp_path / str(size)).mkdir()
        shutil.copy(tmp_path / "one" / "0", tmp_path / str(size) / "paused")
        for found in results(size, tmp_path / str(size), *compiled, *(f"resume: {name}" for name in compiled)):
            for name, values in found.items():
                check_same(values, expected[name.removeprefix("resume: ")], name)


WHOLE = {"shards, recorded": "iwae", "shards, run by Pyro": "stl with dropout"}


@pytest.mark.parametrize("name", WHOLE)
def test_the_parts_have_the_sum_of_the_whole(name: str) -> None:
    """Up to the rounding errors of 200 steps, and with the same random numbers."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        found, expected = outcome(LONG[f"{name}, 200 steps"]), outcome(LONG[f"{WHOLE[name]}, 200 steps"])
    finally:
        torch.set_default_dtype(default)
    assert torch.equal(found["random"], expected["random"])
    torch.testing.assert_close(found["params"], expected["params"], rtol=1e-10, atol=1e-10)
    for a, b in zip(found["epochs"], expected["epochs"], strict=True):
        assert a == pytest.approx(b, rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("reason", [name for name in SHARDS_REFUSED if "processes" not in name])
def test_programs_whose_parts_are_not_independent_are_rejected(reason: str) -> None:
    error = outcome(SHARDS_REFUSED[reason])["error"]
    assert reason in error
    assert "--deterministic-shards" in error


def test_shards_are_added_in_their_order() -> None:
    """In float32, 2^24 + 1 + 1 is 2^24 and 1 + 1 + 2^24 is 2^24 + 2. Parts without images do not count."""
    nothing, values = torch.tensor(0.0, dtype=torch.float32), [2.0**24, 1.0, 1.0]
    params = {"w": torch.zeros(1, dtype=torch.float32)}

    def total(values: list[float]) -> float:
        parts = [Part(nothing, nothing, {"w": params["w"] + value}, True) for value in values]
        parts.insert(1, Part(nothing + 1, nothing, {"w": params["w"] + torch.nan}, False))
        sums = Exchange(shards=4)(parts, params, stop=False)
        assert sums.loss == 0.0
        assert sums.finite
        return float(sums.gradients["w"])

    assert total(values) == 2.0**24
    assert total(values[::-1]) == 2.0**24 + 2


def test_several_fits_with_shards_take_their_own_steps() -> None:
    """The batched graph of `FitMany` would compute a whole batch at once."""

    def make() -> Fit:
        fit = SHARDS["shards, recorded"]()
        fit.epochs = 2
        return fit

    expected = outcome(make, seed=1)
    fits = FitMany(lambda _: make(), [0, 1])
    list(fits)
    found = {name: p.detach() for name, p in fits.fits[1].svi.optim.params.items()}
    assert_same(found, expected["params"])
