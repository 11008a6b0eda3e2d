"""State in a closure, which changes at every call: the step is not recorded, and takes the same steps."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace

import pyro
import pytest
from helpers.any_program import Small, adam, binary
from torch import Tensor

from pyro_vae.infer import ELBO, SVI

Counter = Callable[[], int]


def in_a_dictionary() -> Counter:
    state = {"n": 0}

    def count() -> int:
        state["n"] += 1
        return state["n"]

    return count


def in_a_variable() -> Counter:
    number = 0

    def count() -> int:
        nonlocal number
        number += 1
        return number

    return count


def in_a_list() -> Counter:
    state = [0]

    def count() -> int:
        state[0] += 1
        return state[0]

    return count


def in_an_attribute() -> Counter:
    state = SimpleNamespace(n=0)

    def count() -> int:
        state.n += 1
        return state.n

    return count


@pytest.mark.parametrize("make", [in_a_dictionary, in_a_variable, in_a_list, in_an_attribute])
def test_state_of_a_closure_is_never_frozen(make: Callable[[], Counter], caplog: pytest.LogCaptureFixture) -> None:
    """The likelihood anneals with the number of calls."""
    caplog.set_level(logging.INFO, logger="pyro_vae")
    losses = []
    for graph in (None, "recorded"):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        program, count = Small(), make()
        logits = program.logits

        def annealed(z: Tensor, logits: Callable[[Tensor], Tensor] = logits, count: Counter = count) -> Tensor:
            return min(1.0, count() / 8) * logits(z)

        program.logits = annealed  # type: ignore[method-assign]
        svi = SVI(program.model, program.guide, adam(), ELBO(), execution=graph)
        losses.append([float(svi.step(binary(5, 6))) for _ in range(14)])
    assert losses[0] != pytest.approx(losses[0][:1] * 14, rel=1e-3)
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)
    assert "not recorded" in caplog.text.lower()
