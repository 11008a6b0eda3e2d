"""Recorded steps of third-party programs train as in Pyro, whatever state the program reads or modifies."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.any_program import Small, adam, binary
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor

from pyro_vae import ELBO, IWAE, SVI, log_weights, score
from pyro_vae.trace import CompiledBackend, describe

BIAS = {"logits": 0.0}


class ByAttribute(Small):
    shift: Any = 0.0

    def logits(self, z: Tensor) -> Tensor:
        return self.dec(z) + self.shift


class ByGlobal(Small):
    def logits(self, z: Tensor) -> Tensor:
        return self.dec(z) + BIAS["logits"]


class ByArray(Small):
    def guide(self, x: Tensor) -> None:
        super().guide(x + float(x.detach().cpu().numpy().mean()))


class ByBuffer(Small):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(0.0))

    def logits(self, z: Tensor) -> Tensor:
        return self.dec(z) + float(self.shift)


def set_attribute(program: Any, step: int) -> None:
    program.shift = float(step // 3)


def set_labels(program: Any, step: int) -> None:
    program.shift = torch.full((6,), float(step))


def set_global(program: Any, step: int) -> None:
    BIAS["logits"] = float(step // 3)


def set_buffer(program: Any, step: int) -> None:
    program.shift.fill_(float(step))


def nothing(program: Any, step: int) -> None:
    pass


CHANGES = [
    (ByAttribute, set_attribute),
    (ByAttribute, set_labels),
    (ByGlobal, set_global),
    (ByArray, nothing),
    (ByBuffer, set_buffer),
]


@pytest.mark.parametrize(("kind", "change"), CHANGES)
def test_recorded_step_follows_changing_state(kind: type[Small], change: Any) -> None:
    losses = []
    for graph in (None, "recorded"):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        program = kind()
        svi = SVI(program.model, program.guide, adam(), ELBO(), execution=graph)
        taken = []
        for step in range(8):
            change(program, step)
            taken.append(float(svi.step(binary(5, 6))))
        losses.append(taken)
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)


@pytest.mark.parametrize(("kind", "change"), [case for case in CHANGES if case[0] is not ByArray])
def test_reused_reader_follows_changing_state(kind: type[Small], change: Any) -> None:
    program, backend = kind(), CompiledBackend()
    reader_of_records = pytest.MonkeyPatch()
    with reader_of_records.context() as patch:
        patch.setattr("pyro_vae.trace.graphs.drawn_first.compile_graph", lambda record, inputs: record)
        for step in range(6):
            change(program, step)
            x = binary(4, 6)
            expected = log_weights(program.model, program.guide, x, 120, seed=0)
            found = log_weights(program.model, program.guide, x, 120, seed=0, backend=backend)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_unwatched_state_is_caught_by_the_comparison(caplog: pytest.LogCaptureFixture) -> None:
    """A number in a C buffer changes between steps: the record is dropped at its next comparison, call 4."""
    hidden = np.zeros(1)
    losses = []
    for graph in (None, "recorded"):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        program = Small()
        view = memoryview(hidden)

        def model(x: Tensor, program: Small = program, view: memoryview = view) -> None:
            program.model(x) if view[0] == 0 else poutine.scale(program.model, scale=3.0)(x)

        svi = SVI(model, program.guide, adam(), ELBO(), execution=graph)
        taken = []
        for step in range(8):
            hidden[0] = step >= 4
            taken.append(float(svi.step(binary(5, 6))))
        losses.append(taken)
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)
    assert "the program and its graph give different results" in caplog.text


class Bounds:
    """State in each of the places where Python can keep it."""

    __slots__ = ("shift",)

    def __init__(self) -> None:
        self.shift = 0.0


SLOTTED, ARRAY, QUEUE = Bounds(), np.zeros(3), [0.0]


class Elsewhere(Small):
    default = 0.0

    def __init__(self, read: Any) -> None:
        super().__init__()
        self.read = read

    @property
    def by_property(self) -> float:
        return BIAS["logits"]

    @staticmethod
    def by_static() -> float:
        return BIAS["logits"]

    def logits(self, z: Tensor) -> Tensor:
        return self.dec(z) + self.read(self)


def fill_array(program: Elsewhere, value: float) -> None:
    ARRAY[:] = value


def hook(program: Elsewhere, value: float) -> None:
    if value:
        program.dec.register_forward_hook(lambda net, inputs, output: output + value)


PLACES = {
    "an attribute that shadows one of the class": (lambda p: p.default, lambda p, v: setattr(p, "default", v)),
    "an attribute that comes later": (lambda p: getattr(p, "late", 0.0), lambda p, v: setattr(p, "late", v)),
    "a property": (lambda p: p.by_property, lambda p, v: BIAS.update(logits=v)),
    "a static method": (lambda p: p.by_static(), lambda p, v: BIAS.update(logits=v)),
    "a slot": (lambda p: SLOTTED.shift, lambda p, v: setattr(SLOTTED, "shift", v)),
    "an array": (lambda p: float(ARRAY[0]), fill_array),
    "a list": (lambda p: QUEUE[0], lambda p, v: QUEUE.__setitem__(0, v)),
    "a hook of a module": (lambda p: 0.0, hook),
}


@pytest.mark.parametrize("name", PLACES)
def test_changed_number_causes_a_new_record(name: str) -> None:
    """The number changes at step 9, well before the comparison at call 16."""
    read, write = PLACES[name]
    losses = []
    for graph in (None, "recorded"):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        program = Elsewhere(read)
        svi = SVI(program.model, program.guide, adam(), ELBO(), execution=graph)
        taken = []
        for step in range(14):
            write(program, 2.0 if step == 9 else 0.0) if step in (0, 9) else None
            taken.append(float(svi.step(binary(5, 6))))
        write(program, 0.0)
        losses.append(taken)
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)


class Averaged(Small):
    """A program that averages its codes, in an attribute or a buffer, and counts its calls."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.calls, self.log, self.average = how, 0, [], torch.zeros(())

    def logits(self, z: Tensor) -> Tensor:
        if self.how == "in place":
            self.average.mul_(0.9).add_(0.1 * z.detach().mean())
        elif self.how == "rebound":
            self.average = 0.9 * self.average + 0.1 * z.detach().mean()
        elif self.how == "counted":
            self.calls += 1
        else:
            self.log.append(1)
        return self.dec(z) + self.average + 0.1 * self.calls + 0.1 * len(self.log)


@pytest.mark.parametrize("how", ["in place", "rebound", "counted", "listed"])
def test_program_state_evolves_as_in_stock_pyro(how: str) -> None:
    """Recording, comparing, describing and scoring do not change it."""
    losses = []
    for graph in (None, "recorded"):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        program = Averaged(how)
        svi = SVI(program.model, program.guide, adam(), ELBO(), execution=graph)
        losses.append([float(svi.step(binary(5, 6))) for _ in range(12)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)
    if how == "counted":
        before = program.calls
        assert before == 12
        score(program.model, program.guide, binary(4, 6), 20)
        describe(program.model, program.guide, binary(4, 6))
        assert program.calls == before


@pytest.mark.parametrize("graph", [None, "recorded"])
@pytest.mark.parametrize("change", ["set", "clear"])
def test_replaced_param_store_trains_as_in_stock_pyro(change: str, graph: str | None) -> None:
    """A new tensor gets new optimizer state, since Pyro's optimizers are keyed by tensor."""

    def model(x: Tensor) -> None:
        m = pyro.param("m", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(m, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    ends = []
    for ours in (False, True):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        svi: Any = (
            SVI(model, guide, adam(), ELBO(), execution=graph)
            if ours
            else pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
        )
        for step in range(30):
            if step == 10 and change == "set":
                pyro.get_param_store()["m"] = torch.tensor(3.0)
            elif step == 10:
                pyro.clear_param_store()
            svi.step(torch.full((5,), 1.0))
        ends.append(float(pyro.param("m").detach()))
    assert ends[1] == pytest.approx(ends[0], rel=1e-9)


def test_layouts_are_chosen_per_call_signature() -> None:
    """A branch that mixes particles is enabled by an argument after 64 uses."""
    program = Small()

    def model(x: Tensor, mix: bool = False) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            z = torch.softmax(3 * z, dim=1) if mix else z
            pyro.sample("x", dist.Bernoulli(logits=5 * program.dec(z)).to_event(1), obs=x)

    def guide(x: Tensor, mix: bool = False) -> None:
        program.guide(x)

    x, objective = binary(5, 6), IWAE(3)
    for _ in range(64):
        objective.bounds(model, guide, x)
    (fact,) = objective.fact_cache.facts.values()
    assert fact.layouts.model.kind == "particles"
    objective.bounds(model, guide, x, mix=True)
    assert [fact.layouts.model.kind for fact in objective.fact_cache.facts.values()] == ["particles", "rows"]


def test_gradient_hook_is_called_at_every_step(caplog: pytest.LogCaptureFixture) -> None:
    program, calls = Small(), []
    program.dec.weight.register_hook(lambda gradient: calls.append(1))
    svi = SVI(program.model, program.guide, adam(), ELBO(), execution="recorded")
    with caplog.at_level(logging.WARNING):
        for _ in range(6):
            svi.step(binary(5, 6))
    assert len(calls) >= 6
    assert "gradient hook" in caplog.text


@pytest.mark.parametrize(("graph", "loss"), [("record", ELBO()), ("recorded", Trace_ELBO())])
def test_unsupported_execution_is_rejected(graph: str, loss: Any) -> None:
    program = Small()
    with pytest.raises(ValueError, match="execution"):
        SVI(program.model, program.guide, adam(), loss, execution=graph)
