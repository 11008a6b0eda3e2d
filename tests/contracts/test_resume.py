"""A run interrupted at any step and resumed ends bit-identical to an uninterrupted one."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from helpers.bits import assert_same, records, untimed
from helpers.stateful import EPOCHS, STEPS_OF_EPOCH, new_fit
from torch import Tensor

from pyro_vae.infer.streams import rng_state, set_rng_state
from pyro_vae.runs import checkpoint

pytestmark = pytest.mark.host


def interrupted(
    program: str,
    graph: str | None,
    folder: Path,
    epochs: int = EPOCHS,
    every: int = 1,
    anew: bool = False,
    **options: Any,
) -> int:
    """Run once with a checkpoint at each step, resume from every `every`-th; return the number of resumed runs.

    Recording or compiling takes seconds, so the fit that owns the graph is reused, unless `anew`.
    """
    whole = new_fit(program, graph, seed=0, epochs=epochs, **options)
    seen, steps = [], []
    for epoch in whole.iterate(lambda: True):
        seen.append(epoch)
        if epoch is None:
            steps.append(whole.svi.steps)
            checkpoint.save(folder / str(whole.svi.steps), whole.state_dict())
    assert steps == list(range(1, epochs * STEPS_OF_EPOCH + 1))
    checkpoint.save(folder / "end", whole.state_dict())
    expected, lines = untimed(checkpoint.load(folder / "end")), records(seen)
    assert len(lines) == epochs
    again = None
    for step in steps[::every]:
        if again is None or graph is None or anew:
            again = new_fit(program, graph, seed=99, epochs=epochs, **options)
        again.load_state_dict(checkpoint.load(folder / str(step)))
        rest = records(list(again))
        checkpoint.save(folder / "again", again.state_dict())
        assert_same(untimed(checkpoint.load(folder / "again")), expected)
        assert rest == lines[epochs - len(rest) :]
        assert len(rest) == epochs - (step - 1) // STEPS_OF_EPOCH
    return len(steps[::every])


CASES = [
    pytest.param(graph, program, dtype, EPOCHS, 1, marks=pytest.mark.slow)
    for graph in (None, "recorded", "compiled")
    for program in ("standard", "mixture", "vamp", "params")
    for dtype in (torch.float32, torch.float64)
]
# The default suite covers each execution and each program, not all pairs, with half the epochs. Every third step is
# each of the five steps of an epoch.
CASES += [
    pytest.param(graph, program, dtype, EPOCHS // 2, 3)
    for graph, program, dtype, *_ in (case.values for case in CASES)
    if (graph is None or program == "standard") and (program == "standard") == (dtype is torch.float32)
]


@pytest.mark.parametrize(("graph", "program", "dtype", "epochs", "every"), CASES)
def test_run_interrupted_at_any_step_ends_bit_identical(
    graph: str | None,
    program: str,
    dtype: torch.dtype,
    epochs: int,
    every: int,
    tmp_path: Path,
    promised: Callable[[str], None],
) -> None:
    torch.set_default_dtype(dtype)
    number = interrupted(program, graph, tmp_path, epochs, every)
    how = graph or "run by Pyro"
    promised(f"interrupted at {number} of {epochs * STEPS_OF_EPOCH} steps, {how}: each resumed run ends bit-identical")


@pytest.mark.parametrize("graph", ["recorded", pytest.param("compiled", marks=pytest.mark.slow)])
def test_run_with_a_rebuilt_graph_ends_bit_identical(graph: str, tmp_path: Path) -> None:
    assert interrupted("vamp", graph, tmp_path, EPOCHS // 2, every=6, anew=True) == 4


@pytest.mark.parametrize(
    ("graph", "optimizer"),
    [
        (None, "adamax"),
        ("recorded", "adamax"),
        *(pytest.param(graph, "adam", marks=pytest.mark.slow) for graph in (None, "recorded", "compiled")),
        pytest.param("compiled", "adamax", marks=pytest.mark.slow),
    ],
)
def test_run_with_averaged_weights_ends_bit_identical(graph: str | None, optimizer: str, tmp_path: Path) -> None:
    assert interrupted("params", graph, tmp_path, 2, optimizer=optimizer, ema=0.6) == 2 * STEPS_OF_EPOCH


@pytest.mark.parametrize("before", [0, 1])
def test_random_streams_resume_where_they_stopped(before: int, tmp_path: Path) -> None:
    """Also after one normal draw: Python and NumPy draw normals in pairs and keep the second."""

    def draws(number: int) -> list[tuple[float, ...]]:
        return [
            (float(torch.randn(())), random.gauss(0, 1), np.random.standard_normal(), random.random(), np.random.rand())
            for _ in range(number)
        ]

    pyro.set_rng_seed(5)
    draws(before)
    checkpoint.save(tmp_path / "streams", rng_state())
    expected = draws(5)
    draws(2 - before)
    set_rng_state(checkpoint.load(tmp_path / "streams"))
    assert draws(5) == expected


def without(state: dict[str, Any], *path: str) -> dict[str, Any]:
    first, *rest = path
    return {k: without(v, *rest) if k == first else v for k, v in state.items() if rest or k != first}


@pytest.mark.parametrize(
    "path",
    [
        ("svi",),
        ("svi", "optimizer"),
        ("svi", "scale"),
        ("epoch",),
        ("begun",),
        ("best", "value"),
        ("streams",),
        ("streams", "numpy", "state"),
        ("streams", "python", "words"),
        ("made_with",),
    ],
)
def test_incomplete_state_is_rejected_with_one_line(path: tuple[str, ...]) -> None:
    fit = new_fit("standard", None, seed=0)
    next(fit.iterate(lambda: True))
    again = new_fit("standard", None, seed=0)
    with pytest.raises(ValueError, match="valid state of a fit") as caught:
        again.load_state_dict(without(fit.state_dict(), *path))
    assert "\n" not in str(caught.value)


def test_moments_of_another_shape_never_reach_a_fused_optimizer() -> None:
    fit = new_fit("standard", None, seed=0)
    next(fit.iterate(lambda: True))
    state = fit.state_dict()
    state["svi"]["optimizer"]["state"][0]["exp_avg"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"moments of .* have another shape"):
        new_fit("standard", None, seed=0).load_state_dict(state)


@pytest.mark.parametrize("moment", [torch.tensor(0.0), torch.zeros(2)])
def test_broadcastable_moments_never_reach_a_fused_optimizer(moment: Tensor) -> None:
    fit = new_fit("standard", None, seed=0)
    next(fit.iterate(lambda: True))
    state = fit.state_dict()
    state["svi"]["optimizer"]["state"][0] |= {"exp_avg": moment, "exp_avg_sq": moment}
    with pytest.raises(ValueError, match="have another shape"):
        new_fit("standard", None, seed=0).load_state_dict(state)


def test_moments_with_wrong_indices_never_reach_a_fused_optimizer() -> None:
    fit = new_fit("standard", None, seed=0)
    next(fit.iterate(lambda: True))
    state = fit.state_dict()
    optimizer = state["svi"]["optimizer"]
    optimizer["state"] = {1000 + place: moments for place, moments in optimizer["state"].items()}
    optimizer["param_groups"][0]["params"] = list(optimizer["state"])
    with pytest.raises(ValueError, match="its parameters differ"):
        new_fit("standard", None, seed=0).load_state_dict(state)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("epoch",), "x"),
        (("epoch",), -3),
        (("setbacks",), "a"),
        (("svi", "steps"), -5),
        (("begun", "batches"), -1),
        (("svi", "scale"), "a"),
        (("svi", "modules"), [5]),
        (("svi",), 5),
        (("best", "epoch"), None),
    ],
)
def test_invalid_values_in_a_state_are_rejected(path: tuple[str, ...], value: Any) -> None:
    fit = new_fit("standard", None, seed=0)
    next(fit.iterate(lambda: True))
    state = inner = untimed(fit.state_dict())
    for key in path[:-1]:
        inner[key] = dict(inner[key])
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(ValueError) as caught:  # noqa: PT011 -- the messages differ; each is one line
        new_fit("standard", None, seed=0).load_state_dict(state)
    assert "\n" not in str(caught.value)


def test_state_of_a_finished_fit_loads(tmp_path: Path) -> None:
    """Values of `pyro.param` are in the store as soon as the state is loaded."""
    fit = new_fit("params", None, seed=0)
    list(fit)
    expected, state = pyro.param("rate").item(), fit.state_dict()
    checkpoint.save(tmp_path / "state", state)
    again = new_fit("params", None, seed=1)
    again.load_state_dict(checkpoint.load(tmp_path / "state"))
    assert list(again) == []
    assert pyro.param("rate").item() == expected != 1.5


def test_other_versions_or_threads_cause_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    fit = new_fit("standard", None, seed=0)
    next(fit.iterate(lambda: True))
    state = fit.state_dict() | {"made_with": {"torch": "2.0.0", "threads": torch.get_num_threads()}}
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        new_fit("standard", None, seed=0).load_state_dict(state)
    assert caplog.messages == [
        f"The state was saved with torch 2.0.0, this process has {torch.__version__}: the last bits may differ."
    ]


def test_no_state_before_the_first_step() -> None:
    with pytest.raises(ValueError, match="no state before its first step"):
        new_fit("standard", None, seed=0).state_dict()
