"""The average of the weights: its closed form, its use in measurements, and that training does not depend on it."""

from __future__ import annotations

import copy
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.bits import assert_same
from helpers.calls import one_line
from helpers.fits import BATCHES, EPOCHS, Fixed, Inverted, Multiplied, new_fit
from helpers.programs import small_vae
from helpers.stateful import Params
from torch import Tensor, nn

from pyro_vae.errors import NonFiniteError
from pyro_vae.infer import Fit
from pyro_vae.infer.validation import validate
from pyro_vae.trace import Batch

DECAY = 0.6  # the decay is constant from step 13 of 24 on


def values(fit: Fit) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in fit.svi.optim.params.items()}


def averages(fit: Fit) -> dict[str, Tensor]:
    with fit.average.in_place():
        return values(fit)


def closed_form(weights: list[Tensor], first: int = 0) -> Tensor:
    """Return the exponential moving average of the weights of all steps, the first of which has index `first`."""
    decays = [min(DECAY, (1 + t) / (10 + t)) for t in range(first, first + len(weights))]
    decays[0] = 0.0
    return sum((1 - d) * math.prod(decays[s + 1 :]) * w for s, (d, w) in enumerate(zip(decays, weights, strict=True)))


@pytest.mark.parametrize("graph", [None, "recorded", pytest.param("compiled", marks=pytest.mark.slow)])
@pytest.mark.parametrize("make", [small_vae, Params], ids=["modules", "constrained params"])
def test_average_matches_its_closed_form_after_each_step(make: Any, graph: str | None) -> None:
    fit = new_fit(make(), graph=graph, ema=DECAY)
    trajectory = []
    for record in fit.iterate(lambda: True):
        if record is None:
            trajectory.append(values(fit))
            for name, average in averages(fit).items():
                expected = closed_form([weights[name] for weights in trajectory])
                torch.testing.assert_close(average, expected, rtol=1e-12, atol=1e-12)
            assert_same(values(fit), trajectory[-1])  # training weights are unchanged
    assert len(trajectory) == EPOCHS * BATCHES
    for name, weight in values(fit).items():  # at the end the program has the averaged weights
        expected = closed_form([weights[name] for weights in trajectory])
        torch.testing.assert_close(weight, expected, rtol=1e-12, atol=1e-12)


def test_training_does_not_depend_on_the_average() -> None:
    """Nor does its noise, although validation uses other weights."""
    trajectories, elbos = [], []
    for ema in (0.0, DECAY):
        pyro.set_rng_seed(0)
        fit = new_fit(small_vae(), ema=ema)
        records = list(fit.iterate(lambda: True))
        elbos.append([record.elbo for record in records if record is not None])
        trajectories.append([m["exp_avg"] for m in fit.svi.optim.optimizer.state.values()])
    assert elbos[0] == elbos[1]
    assert_same(*trajectories)


def test_zero_decay_keeps_no_average() -> None:
    fit = new_fit(small_vae())
    next(iter(fit))
    assert not fit.average._pairs
    assert fit.state_dict()["average"] is None


def test_validation_elbo_uses_the_averaged_weights() -> None:
    vae = small_vae()
    other = copy.deepcopy(vae)
    fit = new_fit(vae, ema=DECAY)
    trajectory = []
    for record in fit.iterate(lambda: True):
        if record is None:
            trajectory.append([p.detach().clone() for p in vae.parameters()])
            continue
        with torch.no_grad():
            for p, *weights in zip(other.parameters(), *trajectory, strict=True):
                p.copy_(closed_form(weights))
        pyro.clear_param_store()
        assert record.valid_elbo == pytest.approx(validate(other.model, other.guide, fit.valid, fit.seed)[0], rel=1e-12)
        raw = copy.deepcopy(other)
        with torch.no_grad():
            for p, weight in zip(raw.parameters(), trajectory[-1], strict=True):
                p.copy_(weight)
        pyro.clear_param_store()
        assert record.valid_elbo != pytest.approx(validate(raw.model, raw.guide, fit.valid, fit.seed)[0], rel=1e-6)


def test_patience_keeps_the_averages_of_the_best_epoch() -> None:
    vae = small_vae()
    fit = new_fit(vae, epochs=50, patience=3, ema=DECAY)
    fit.batches = Inverted()
    kept, elbos = [], []
    for record in fit:
        kept.append(values(fit) if fit.finished else averages(fit))
        elbos.append(record.valid_elbo)
    best = elbos.index(max(elbos))
    assert len(elbos) == best + 1 + 3 < 50
    assert_same(values(fit), kept[best])
    assert validate(vae.model, vae.guide, Batch(Fixed().valid), fit.seed)[0] == pytest.approx(elbos[best], rel=1e-12)
    state = fit.state_dict()  # both are equal
    assert_same(state["average"]["params"], state["svi"]["params"])


def test_parameters_are_restored_bit_identical_after_an_exception() -> None:
    fit = new_fit(small_vae(), ema=DECAY)
    next(iter(fit))
    with torch.no_grad():
        for p, value in zip(fit.svi.optim.params.values(), (-0.0, math.nan, math.inf), strict=False):
            p.view(-1)[0] = value
    before = values(fit)
    inside = {}

    def interrupted() -> None:
        with fit.average.in_place():
            inside.update(values(fit))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(not torch.equal(inside[name], before[name]) for name in before)
    assert_same(values(fit), before)


class Late:
    """A program with a parameter that appears after some steps."""

    steps = 0

    def model(self, x: Tensor) -> None:
        bias = pyro.param("bias", torch.full((3, 2), 2.0))
        if self.steps > 6:
            bias = bias + pyro.param("late", torch.full((2,), -1.0))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("x", dist.Bernoulli(logits=bias).to_event(2), obs=x)

    def guide(self, x: Tensor) -> None:
        self.steps += 1


def test_late_parameter_is_averaged_from_its_first_step() -> None:
    program = Late()
    fit = new_fit(program, ema=DECAY, valid=None)
    late = []
    for record in fit.iterate(lambda: True):
        if record is None and "late" in fit.svi.optim.params:
            late.append(values(fit)["late"])
            expected = closed_form(late, first=fit.average.steps - len(late))
            torch.testing.assert_close(averages(fit)["late"], expected, rtol=1e-12, atol=1e-12)
    assert 10 < len(late) < EPOCHS * BATCHES


def test_average_restarts_for_a_new_tensor() -> None:
    """E.g. after the param store was cleared and the old tensor no longer trains."""
    program = Late()
    program.steps = -1000
    fit = new_fit(program, ema=DECAY, valid=None)
    next(iter(fit))
    with fit.scope():
        pyro.clear_param_store()
        fit.svi.step(Fixed().valid)
    fit.average.update(fit.svi)
    assert_same(averages(fit), values(fit))


@pytest.mark.parametrize("graph", [None, "recorded"])
def test_nonfinite_step_leaves_the_average_unchanged(graph: str | None) -> None:
    fit = new_fit(small_vae(), graph=graph, ema=DECAY)
    fit.batches = Multiplied()
    next(iter(fit))
    before, steps = averages(fit), fit.average.steps
    fit.batches.factor = torch.tensor(math.nan)
    with pytest.raises(NonFiniteError):
        next(iter(fit))
    assert_same(averages(fit), before)
    assert fit.average.steps == steps == BATCHES


def test_step_skipped_by_the_device_leaves_the_average_unchanged() -> None:
    fit = new_fit(small_vae(), ema=DECAY)
    next(iter(fit))
    before = averages(fit)
    fit.svi._gate.failed_step.fill_(2)  # as on CUDA, where the host does not know yet
    fit.average.update(fit.svi)
    assert_same(averages(fit), before)
    fit.svi._gate.failed_step.fill_(-1)
    fit.average.update(fit.svi)
    assert not torch.equal(averages(fit)["vae$$$likelihood.bias"], before["vae$$$likelihood.bias"])


class Counting(nn.Module):
    """A program with a buffer that counts the steps."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(3, 2))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, size: int) -> Tensor:
        if self.training:
            self.count += 1
        return self.bias.expand(size, 3, 2)

    def model(self, x: Tensor) -> None:
        pyro.module("counting", self)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("x", dist.Bernoulli(logits=self(len(x))).to_event(2), obs=x)

    def guide(self, x: Tensor) -> None:
        pass


def test_buffers_are_not_averaged() -> None:
    program = Counting()
    fit = new_fit(program, ema=DECAY)
    for _ in fit:
        average, trained = (fit.state_dict()[part]["modules"][0] for part in ("average", "svi"))
        assert average["count"] == trained["count"] == fit.svi.steps
        assert fit.finished or not torch.equal(average["bias"], trained["bias"])


@pytest.mark.parametrize("emas", [(DECAY, 0.0), (0.0, DECAY)])
def test_state_and_fit_must_both_have_an_average(emas: tuple[float, float]) -> None:
    fit, other = (new_fit(small_vae(), ema=ema) for ema in emas)
    next(iter(fit))
    pyro.clear_param_store()
    with pytest.raises(ValueError, match=r"an average of the weights \(ema\), but this fit has") as caught:
        other.load_state_dict(fit.state_dict())
    one_line(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (
            ("params", "vae$$$likelihood.bias"),
            torch.zeros(5),
            "bias of the average has shape .5,. in the state, not ",
        ),
        (("params",), {}, "of the average is in only one of them"),
        (("params",), 3, "no values of the average"),
        (("steps",), "x", "valid state of a fit"),
        (("steps",), 1.5, "valid state of a fit"),
    ],
)
def test_invalid_average_is_rejected_with_one_line(path: tuple[str, ...], value: Any, says: str) -> None:
    fit = new_fit(small_vae(), ema=DECAY)
    next(iter(fit))
    state = inner = fit.state_dict()
    for key in ("average", *path[:-1]):
        inner[key] = dict(inner[key])
        inner = inner[key]
    inner[path[-1]] = value
    pyro.clear_param_store()
    with pytest.raises(ValueError, match=says) as caught:
        new_fit(small_vae(), ema=DECAY).load_state_dict(state)
    one_line(caught.value)


@pytest.mark.parametrize("ema", [1.5, 1.0, -0.1, math.nan])
def test_invalid_decay_is_rejected(ema: float) -> None:
    with pytest.raises(ValueError, match=f"^ema is {ema};") as caught:
        new_fit(small_vae(), ema=ema)
    one_line(caught.value)
