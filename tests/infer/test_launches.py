"""Many steps with one launch, captured on the stand-in for a CUDA device: the numbers of the same steps one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pytest
import torch
from helpers import fake_capture
from helpers.bits import assert_same, records, untimed
from helpers.programs import small_vae
from torch import Tensor

from pyro_vae.infer import ELBO, IWAE, SVI, BetaELBO, Fit, Objective, Optim, launches, schedules
from pyro_vae.trace.graphs import devices

pytestmark = pytest.mark.host

EPOCHS, FULL, SIZE = 2, 70, 4  # an epoch has 70 batches of four images, and a last one of three
STEPS = FULL + 1
KEPT = {1, 9, 53, 60, 92, 112, 140}  # steps after which states are compared; launches of 3 and of 20 end at some
OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "elbo": ELBO,
    "beta": lambda: BetaELBO(1, 4.0, warmup_steps=100),
    "iwae": lambda: IWAE(3),
}


class Rolled:
    """Images in a new order each epoch, binarized again with the global generator, and multiplied by factors."""

    num_images = FULL * SIZE + 3

    def __init__(self) -> None:
        self.grey = torch.rand(self.num_images, 3, 2, generator=torch.Generator().manual_seed(0))
        self.factors = torch.ones(self.num_images, 1, 1)

    def __call__(self, epoch: int) -> Iterator[Tensor]:
        yield from torch.arange(self.num_images).roll(7 * epoch).split(SIZE)

    def observe(self, batch: Tensor) -> Tensor:
        return torch.bernoulli(self.grey[batch]) * self.factors[batch]


Expected = tuple[list[dict[str, Any]], dict[int, dict[str, Any]]]


def new_fit(objective: Objective, seed: int = 0, ema: float = 0.0, schedule: bool = True, **options: Any) -> Fit:
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    vae, batches = small_vae(), Rolled()
    on_device = devices.can_capture(batches.grey)
    rate = 0.02 if on_device else torch.tensor(0.02, dtype=torch.float32)  # which it is on a device
    cosine = schedules.per_step(schedules.cosine, EPOCHS * STEPS) if schedule else None
    svi = SVI(
        vae.model,
        vae.guide,
        Optim(torch.optim.Adam, {"lr": rate, "fused": True}, cosine),
        objective,
        execution="recorded",
    )
    assert svi.recorded is not None
    svi.recorded.compiled = on_device  # the decision to capture; the graph itself runs operation by operation
    return Fit(svi, batches, EPOCHS, valid=(batches.grey[:5] > 0.5).to(batches.grey.dtype), ema=ema, **options)


def copied(fit: Fit) -> dict[str, Any]:
    """Return a copy of the state of a fit, without the time and an option of the optimizer that a device sets."""
    state = torch.utils._pytree.tree_map_only(Tensor, torch.clone, untimed(fit.state_dict()))
    (group,) = state["svi"]["optimizer"]["param_groups"]
    group.pop("capturable")
    return state


def run(fit: Fit) -> Expected:
    """Run a fit, and interrupt it where a step of `KEPT` ends; return its epochs and its states there and at the end."""
    epochs, states = [], {}
    for epoch in fit.iterate(lambda: fit.svi.steps in KEPT):
        if epoch is None:
            states[fit.svi.steps] = copied(fit)
        epochs.append(epoch)
    return records(epochs), states | {-1: copied(fit)}


@pytest.fixture(scope="module")
def one_by_one() -> Callable[[str], Expected]:
    """Return the epochs and the states of a recorded fit without any capture."""
    found: dict[str, Expected] = {}

    def expected(name: str) -> Expected:
        if name not in found:
            assert not devices.can_capture(torch.empty(0))
            found[name] = run(new_fit(OBJECTIVES[name]()))
            assert found[name][1].keys() == {*KEPT, -1}
        return found[name]

    return expected


class Device:
    """The stand-in for a device: makes fits that are captured there, and lists the launches of many steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.launched: list[int] = []  # index of the first step of each launch

    def fit(self, objective: Objective, steps: int, **options: Any) -> Fit:
        """Return a fit with many steps a launch; everything runs on the device from now on."""
        launch = launches.Launches._launch

        def listed(self_: launches.Launches, *arguments: Any) -> None:
            self.launched.append(self_.svi.steps)
            launch(self_, *arguments)

        if not devices.can_capture(torch.empty(0)):
            fake_capture.install(self._monkeypatch)
            self._monkeypatch.setattr(launches.Launches, "_launch", listed)
        self._monkeypatch.setattr(launches, "STEPS", steps)
        return new_fit(objective, **options)


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(monkeypatch)


@pytest.mark.parametrize("steps", [1, 3, 20])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_captured_fit_equals_the_same_steps_one_by_one(
    name: str, steps: int, one_by_one: Callable[[str], Expected], on_device: Device
) -> None:
    """Also at each boundary: parameters, moments, learning rates, sums of the epoch and the random generator."""
    expected, expected_states = one_by_one(name)
    fit = on_device.fit(OBJECTIVES[name](), steps)
    epochs, states = run(fit)
    assert epochs == expected
    for step, state in states.items():
        assert_same(state, expected_states[step])
    assert len(states) > 3
    assert on_device.launched[:3] == {1: [], 3: [9, 12, 17], 20: [33, 72, 92]}[steps]
    assert fit.svi.recorded.calls == EPOCHS * FULL - 1  # without the first step of all and the smaller last batches
    assert [call.graph is not None for call in (fit.svi.graph_call, fit._launches._graph_call)] == [True, steps > 1]
