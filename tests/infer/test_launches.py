"""Many steps with one launch, captured on the stand-in for a CUDA device: the numbers of the same steps one by one."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import fake_capture
from helpers.bits import assert_same, records, untimed
from helpers.programs import small_vae
from torch import Tensor

from pyro_vae.errors import NonFiniteError
from pyro_vae.infer import ELBO, IWAE, SVI, BetaELBO, Fit, Objective, Optim, launches, schedules, update_graph
from pyro_vae.infer.epochs import Loader
from pyro_vae.trace.graphs import devices, drawn_first
from pyro_vae.trace.graphs.graph import Graph

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


def new_fit(
    objective: Objective,
    seed: int = 0,
    ema: float = 0.0,
    schedule: bool = True,
    epochs: int = EPOCHS,
    program: Any = None,
) -> Fit:
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    program, batches = program or small_vae(), Rolled()
    on_device = devices.can_capture(batches.grey)
    rate = 0.02 if on_device else torch.tensor(0.02, dtype=torch.float32)  # which it is on a device
    cosine = schedules.per_step(schedules.cosine, EPOCHS * STEPS) if schedule else None
    svi = SVI(
        program.model,
        program.guide,
        Optim(torch.optim.Adam, {"lr": rate, "fused": True}, cosine),
        objective,
        execution="recorded",
    )
    assert svi.recorded is not None
    svi.recorded.compiled = on_device  # the decision to capture; the graph itself runs operation by operation
    return Fit(svi, batches, epochs, valid=(batches.grey[:5] > 0.5).to(batches.grey.dtype), ema=ema)


def copied(fit: Fit) -> dict[str, Any]:
    """Return a copy of the state of a fit, without the time and an option of the optimizer that a device sets."""
    state = torch.utils._pytree.tree_map_only(Tensor, torch.clone, untimed(fit.state_dict()))
    (group,) = state["svi"]["optimizer"]["param_groups"]
    group.pop("capturable")
    return state


def run(fit: Fit) -> Expected:
    """Run a fit, interrupted where a step of `KEPT` ends; return its epochs, and its states there and at the end."""
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
            # A device captures kernels, and the stand-in operations: so these are not compiled.
            self._monkeypatch.setattr(drawn_first, "compile_graph", lambda record, inputs: record)
            if not options.pop("update_in_graph", False):  # its formula rounds differently from the optimizer's kernel
                self._monkeypatch.setattr(update_graph, "plain_group", lambda optim: None)
        self._monkeypatch.setattr(launches, "STEPS", steps)
        return new_fit(objective, **options)


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(monkeypatch)


# The default suite covers each objective and each number of steps, not all pairs.
PAIRS = [
    pytest.param(
        name, steps, marks=[] if (name, steps) in {("elbo", 1), ("beta", 20), ("iwae", 3)} else pytest.mark.slow
    )
    for name in OBJECTIVES
    for steps in (1, 3, 20)
]


@pytest.mark.parametrize(("name", "steps"), PAIRS)
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
    assert (
        fit.svi.recorded.comparisons.calls == EPOCHS * FULL - 1
    )  # without the first step of all and the smaller last batches
    assert [call.graph is not None for call in (fit.svi.graph_call, fit._launches._graph_call)] == [True, steps > 1]


def test_captured_update_is_that_of_the_optimizer(one_by_one: Callable[[str], Expected], on_device: Device) -> None:
    """The update of Adam as operations of the graph, up to the rounding errors of 142 steps in float64."""
    (expected, states) = one_by_one("beta")
    fit = on_device.fit(OBJECTIVES["beta"](), 20, update_in_graph=True)
    epochs, found = run(fit)
    assert on_device.launched[:3] == [33, 72, 92]
    for a, b in zip(epochs, expected, strict=True):
        assert a == pytest.approx(b, rel=1e-10)
    for key in ("params", "optimizer"):
        torch.testing.assert_close(found[-1]["svi"][key], states[-1]["svi"][key], rtol=1e-9, atol=1e-10)


def test_states_at_boundaries_resume_with_other_boundaries(
    one_by_one: Callable[[str], Expected], on_device: Device
) -> None:
    epochs, states = one_by_one("beta")
    _, found = run(on_device.fit(OBJECTIVES["beta"](), 20))
    again = on_device.fit(OBJECTIVES["beta"](), 3, seed=99)
    for step in (53, 112):  # each the end of a launch of 20
        again.load_state_dict(found[step])
        on_device.launched.clear()
        rest = records(list(again))
        assert rest == epochs[-len(rest) :]
        assert_same(copied(again), states[-1])
        assert on_device.launched


def test_nonfinite_step_inside_a_launch_is_named_and_is_the_last(on_device: Device) -> None:
    """The weights are those of a fit one by one, which raises at that step."""
    failing = STEPS + 30
    ends = []
    for number in range(2):
        fit = on_device.fit(ELBO(), 20) if number else new_fit(ELBO())
        next(iter(fit))
        image = list(fit.batches(1))[30][0]
        fit.batches.factors[image] = math.nan
        with pyro.validation_enabled(False), pytest.raises(NonFiniteError, match=f"at step {failing} ") as caught:
            next(iter(fit))
        assert caught.value.__notes__ == ["That is batch 30 of epoch 1."]
        ends.append({name: p.detach().clone() for name, p in fit.svi.optim.params.items()})
    assert any(step < failing < step + 19 for step in on_device.launched)
    assert_same(ends[1], ends[0])


def test_request_to_pause_waits_for_one_launch(on_device: Device) -> None:
    """A request may come at any time; the fit asks for it after each single step and after each launch."""
    fit, asked = on_device.fit(ELBO(), 20), [0]
    for _ in fit.iterate(lambda: asked.append(fit.svi.steps)):
        pass
    sizes = {before: after - before for before, after in itertools.pairwise(asked)}
    assert {before for before, size in sizes.items() if size == 20} == set(on_device.launched)
    assert all(size == (20 if before in on_device.launched else 1) for before, size in sizes.items())
    assert asked[-1] == EPOCHS * STEPS


def launched_between_boundaries(fit: Fit) -> dict[int, Counter[str]]:
    """Run a fit; return what is launched by the last single step and by the last launch of many, by number of steps."""
    next(fit.iterate(lambda: fit.svi.steps == 80))  # until then, the program is recorded, and the step captured
    found, before = {}, 80
    with fake_capture.Outside() as outside:
        for _ in fit.iterate(lambda: fit.svi.steps < EPOCHS * STEPS):  # without the smaller last batch
            found[fit.svi.steps - before] = outside.taken()
            before = fit.svi.steps
            if before == EPOCHS * STEPS - 1:
                break
    return found


@pytest.mark.parametrize(("name", "tables"), [pytest.param("elbo", 0, marks=pytest.mark.slow), ("beta", 1)])
def test_ten_launches_for_any_number_of_steps(name: str, tables: int, on_device: Device) -> None:
    """One graph, six operations that fill its memory, and three copies from there; one more for the table of a beta."""
    found = {steps: launched_between_boundaries(on_device.fit(OBJECTIVES[name](), steps)) for steps in (3, 20)}
    # The index of the first step; the batches, made into one tensor and copied; the two sums of the epoch, and the
    # learning rates. From the graph: the sums and the last ELBO.
    many = {"replay": 1, "fill_": 1, "stack": 1, "copy_": 4 + tables, "clone": 3}
    assert found[3][3] == found[20][20] == many
    # A single step: its index, learning rate and beta; its batch; loss, ELBO, and the learning rate, which torch keeps
    # a second time; the two sums.
    assert found[20][1] == {"replay": 1, "fill_": 2 + tables, "copy_": 1, "clone": 4, "sub": 1, "add": 1}


def test_device_compares_the_graph_at_the_same_calls(on_device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[list[int]] = []
    compare = Graph.check
    for number in range(2):
        fit = on_device.fit(ELBO(), 20) if number else new_fit(ELBO())
        compared.append([])

        def listed(self: Graph, *inputs: Tensor, fit: Fit = fit) -> Any:
            compared[-1].append(fit.svi.recorded.comparisons.calls + 1)
            return compare(self, *inputs)

        monkeypatch.setattr(Graph, "check", listed)
        list(fit)
    assert compared[0] == compared[1] == [2, 4, 8, 16, 32, 64, 128]
    assert on_device.launched


class Scaled(ELBO):
    """The ELBO with a weight that `set_step` writes in a way that a table cannot hold."""

    def __init__(self, write: str) -> None:
        super().__init__()
        self.write, self.weight = write, torch.tensor(1.0)

    def set_step(self, step: int) -> None:
        value = 1 + step // 25 / 10
        if self.write == "number":
            self.weight_of_step = value
        elif self.write == "product":
            self.weight.zero_().add_(1).mul_(value)
        elif self.write == "view":
            self.weight.view(1).copy_(torch.full((1,), value))
        elif self.write == "exchange":
            self.weight = torch.tensor(value)
        elif step % 25 == 0:
            self.weight.fill_(value)

    def per_image(self, particles: Any) -> Tensor:
        return super().per_image(particles) * (self.weight_of_step if self.write == "number" else self.weight)


@pytest.mark.parametrize(
    "write",
    [
        *(pytest.param(write, marks=pytest.mark.slow) for write in ("number", "view", "exchange")),
        "product",
        "sometimes",
    ],
)
def test_values_that_no_table_can_hold_are_written_between_single_steps(write: str, on_device: Device) -> None:
    expected = run(new_fit(Scaled(write), epochs=1))
    epochs, states = run(on_device.fit(Scaled(write), 3, epochs=1))
    assert epochs == expected[0]
    for step, state in states.items():
        assert_same(state, expected[1][step])
    changes = {25, 50}  # at which launches do not pass
    assert bool(on_device.launched) == (write in ("number", "sometimes"))
    assert not any(start < step < start + 3 for start in on_device.launched for step in changes)


@pytest.mark.parametrize("reason", ["average", "loader", "memory"])
def test_steps_that_need_the_host_are_taken_one_by_one(
    reason: str, on_device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"ema": 0.9} if reason == "average" else {}
    expected = list(new_fit(ELBO(), **options))
    fit = on_device.fit(ELBO(), 20, **options)
    if reason == "loader":
        fit.batches = Loader([fit.batches.grey[batch].round() for batch in fit.batches(0)])
    elif reason == "memory":
        monkeypatch.setattr(launches, "_MOST_BYTES", 20 * SIZE * 8 - 1)  # 8 bytes an index
    epochs = list(fit)
    assert on_device.launched == []
    if reason != "loader":
        assert records(epochs) == records(expected)


def test_constant_learning_rate_is_reported_and_kept(on_device: Device) -> None:
    expected = run(new_fit(ELBO(), schedule=False))
    found = run(on_device.fit(ELBO(), 20, schedule=False))
    assert on_device.launched
    assert found[0] == expected[0]
    for step, state in found[1].items():
        assert_same(state, expected[1][step])


def test_program_with_a_mask_is_not_captured(on_device: Device) -> None:
    """The values of a mask determine shapes, so that each step reads them off the device."""
    seen = torch.tensor([True, False])

    class Masked:
        def model(self, x: Tensor) -> None:
            loc = pyro.param("loc", torch.zeros(()))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(loc, 1.0).expand([3, 1]).to_event(2), obs=x[:, :, seen])

        def guide(self, x: Tensor) -> None:
            pass

    expected = run(new_fit(ELBO(), program=Masked(), epochs=1))
    fit = on_device.fit(ELBO(), 3, program=Masked(), epochs=1)
    assert run(fit)[0] == expected[0]
    assert fit.svi.recorded.comparisons.calls == FULL - 1
    assert on_device.launched == []
