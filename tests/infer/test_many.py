"""Several fits at a time: each matches its solo run, whether or not the steps can be shared."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import stateful
from helpers.bits import assert_same, records, untimed
from helpers.fits import Fixed, Multiplied
from helpers.programs import Layered, small_vae
from torch import Tensor, nn

from pyro_vae.errors import NonFiniteError
from pyro_vae.infer import ELBO, IWAE, SVI, BetaELBO, Epoch, Fit, FitMany, Optim, schedules
from pyro_vae.infer.parameters import program_state
from pyro_vae.infer.streams import OwnStreams, restored_streams
from pyro_vae.trace import BatchedGraph

SEEDS = (0, 1)
Make = Callable[[int], Fit]


class Uneven(Fixed):
    """The images of `Fixed` in batches of 7, the last of 4, in an order of the seed."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed

    def __call__(self, epoch: int) -> Any:
        generator = torch.Generator().manual_seed(100 * self.seed + epoch)
        yield from torch.randperm(self.num_images, generator=generator).split(7)


def normalized() -> Layered:
    """A VAE with batch normalization; biases before that would have gradients of rounding alone."""
    return Layered(nn.BatchNorm1d(8), bias=False)


class GammaLatent:
    """Its draws depend on what it computes, so that they are no inputs."""

    def model(self, x: Tensor) -> None:
        rate = pyro.param("rate", torch.tensor(1.5), constraint=dist.constraints.positive)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Gamma(2.0, rate))
            pyro.sample("x", dist.Bernoulli(logits=z[:, None, None].log().expand(x.shape)).to_event(2), obs=x)

    def guide(self, x: Tensor) -> None:
        shape = pyro.param("shape", torch.tensor(2.0), constraint=dist.constraints.positive)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Gamma(shape, 1.0))


def fit_of(
    program: Any,
    *,
    loss: Any = None,
    rate: float = 0.01,
    batches: Any = None,
    graph: str | None = "recorded",
    epochs: int = 5,
    **arguments: Any,
) -> Fit:
    batches = batches or Uneven()
    optim = Optim(torch.optim.Adam, {"lr": rate, "fused": True}, schedules.per_step(schedules.cosine, 25))
    svi = SVI(program.model, program.guide, optim, loss or ELBO(), execution=graph)
    return Fit(svi, batches, epochs, **({"valid": batches.valid} | arguments))


def plain(seed: int) -> Fit:
    return fit_of(small_vae(), batches=Uneven(seed))


def rates_and_averages(seed: int) -> Fit:
    return fit_of(small_vae(), rate=0.01 * (seed + 1), ema=0.9)


def beta(seed: int) -> Fit:
    return fit_of(small_vae(), loss=BetaELBO(beta=1.0 + seed, warmup_steps=12))


def importance(seed: int) -> Fit:
    return fit_of(small_vae(), loss=IWAE(3))


def batch_norm(seed: int) -> Fit:
    return fit_of(normalized())


def constrained(seed: int) -> Fit:
    return stateful.new_fit("params", "recorded", seed, epochs=5)


def images(seed: int) -> Fit:
    return stateful.new_fit("standard", "recorded", seed, epochs=5, ema=0.9)


def gamma(seed: int) -> Fit:
    return fit_of(GammaLatent(), valid=None)


def of_two_structures(seed: int) -> Fit:
    return fit_of(small_vae() if seed else normalized())


def of_two_numbers(seed: int) -> Fit:
    """A number in Python is part of the record."""
    vae, factor = small_vae(), 1.0 + seed

    def guide(x: Tensor) -> None:
        with pyro.poutine.scale(scale=factor):
            vae.guide(x)

    vae_like = type("Program", (), {"model": staticmethod(vae.model), "guide": staticmethod(guide)})
    return fit_of(vae_like)


@pytest.fixture
def shared_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the number of members at each shared step."""
    sizes: list[int] = []
    call = BatchedGraph.__call__

    def counted(self: BatchedGraph, inputs: Any) -> Any:
        results = call(self, inputs)
        sizes.append(len(inputs))
        return results

    monkeypatch.setattr(BatchedGraph, "__call__", counted)
    return sizes


def alone(make: Make, seed: int, *, by_pyro: bool = False) -> tuple[Fit, list[Epoch]]:
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    fit = make(seed)
    if by_pyro:  # the same up to rounding, and faster than to record
        fit.svi.recorded = None
    return fit, list(fit)


def copied(state: Any) -> Any:
    return torch.utils._pytree.tree_map_only(Tensor, torch.clone, state)


def values(fit: Fit) -> Any:
    with fit.scope():
        return copied(program_state(fit.svi.modules, fit.svi.optim.params))


def check_against_solo(many: FitMany, epochs: list[dict[int, Epoch]], make: Make, rtol: float, atol: float) -> None:
    for seed in many.fits:
        fit, expected = alone(make, seed, by_pyro=True)
        found = [each[seed] for each in epochs if seed in each]
        assert [epoch.step for epoch in found] == [epoch.step for epoch in expected]
        for a, b in zip(records(found), records(expected), strict=True):
            assert a == pytest.approx(b, rel=rtol, abs=atol, nan_ok=True)
        torch.testing.assert_close(values(many.fits[seed]), values(fit), rtol=rtol, atol=atol)


LONG = pytest.param(importance, marks=pytest.mark.slow)


@pytest.mark.parametrize("make", [plain, rates_and_averages, beta, LONG, batch_norm, constrained, images])
def test_members_match_their_solo_runs(make: Make, shared_steps: list[int]) -> None:
    """To 1e-10 after 25 steps of which those are shared that a record takes."""
    many = FitMany(make, SEEDS)
    epochs = list(many)
    assert shared_steps == [len(SEEDS)] * 19
    check_against_solo(many, epochs, make, 1e-10, 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("graph", ["recorded", "compiled"])
def test_float32_members_match_their_solo_runs(
    graph: str, shared_steps: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    torch.set_default_dtype(torch.float32)
    many = FitMany(lambda seed: fit_of(small_vae(), graph=graph), SEEDS)
    epochs = list(many)
    assert shared_steps == [len(SEEDS)] * 19
    assert not [record for record in caplog.records if record.name == "pyro_vae"]
    check_against_solo(many, epochs, lambda seed: fit_of(small_vae()), 1e-5, 1e-5)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (gamma, "_standard_gamma"),
        (of_two_structures, "differ"),
        (of_two_numbers, "differ"),
        (lambda seed: fit_of(small_vae(), graph=None), "execution is None"),
    ],
)
def test_fits_that_cannot_share_steps_run_in_sequence(
    make: Make, reason: str, shared_steps: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    many = FitMany(make, SEEDS)
    epochs = list(many)
    assert not shared_steps
    (line,) = [record.getMessage() for record in caplog.records]
    assert reason in line
    assert "one after the other" in line
    for seed in SEEDS:
        fit, expected = alone(make, seed)
        assert_same(records([each[seed] for each in epochs]), records(expected))
        assert_same(values(many.fits[seed]), values(fit))


@pytest.mark.parametrize("graph", ["recorded", None])
def test_non_finite_member_is_frozen(graph: str | None, caplog: pytest.LogCaptureFixture) -> None:
    batches = {seed: Multiplied() for seed in SEEDS}

    def make(seed: int) -> Fit:
        batches[seed].factor.fill_(1.0)
        return fit_of(small_vae(), batches=batches[seed], graph=graph)

    iterator = iter(many := FitMany(make, SEEDS))
    epochs = list(islice(iterator, 3))
    batches[1].factor.fill_(torch.nan)
    before = values(many.fits[1])
    epochs += iterator
    assert [set(each) for each in epochs] == [{0, 1}] * 3 + [{0}] * 2
    assert_same(values(many.fits[1]), before)
    assert list(many.errors) == [1]
    assert isinstance(many.errors[1], NonFiniteError)
    assert many.errors[1].step == 12
    assert "batch 0 of epoch 3" in many.errors[1].__notes__[0]
    warned = [r.getMessage() for r in caplog.records if "seed 1" in r.getMessage() and r.levelno == logging.WARNING]
    assert len(warned) == 2  # when it happens, and at the end
    del many.fits[1]
    check_against_solo(many, epochs, make, 1e-10, 1e-10)


def test_first_error_is_raised_if_every_member_fails() -> None:
    def make(seed: int) -> Fit:
        batches = Multiplied()
        batches.factor.fill_(torch.nan)
        return fit_of(small_vae(), batches=batches)

    with pytest.raises((NonFiniteError, ValueError)):
        list(FitMany(make, SEEDS))


def test_members_stop_early_independently(shared_steps: list[int]) -> None:
    """Two of three stop after some epochs: first a place is computed in vain, then the graph is made anew."""

    def make(seed: int) -> Fit:
        vae = normalized()
        return fit_of(vae, rate=0.5 if seed else 0.01, patience=3 if seed == 2 else 1, epochs=6)

    many = FitMany(make, range(3))
    epochs = list(many)
    assert len({sum(seed in each for each in epochs) for seed in range(3)}) == 3
    assert set(shared_steps) == {1, 2, 3}
    check_against_solo(many, epochs, make, 1e-10, 1e-10)


@pytest.mark.slow
def test_replaced_tensors_are_read_again(shared_steps: list[int]) -> None:
    class Weighted(Uneven):
        """Gives the program other weights with each batch."""

        def __call__(self, epoch: int) -> Any:
            for batch in super().__call__(epoch):
                self.program.weight = weight(len(kept))
                kept.append(self.program.weight)
                yield batch

    class Program:
        def __init__(self) -> None:
            self.vae, self.weight = small_vae(), weight(0)

        def model(self, x: Tensor) -> None:
            self.vae.model(x)

        def guide(self, x: Tensor) -> None:
            self.vae.guide(x * self.weight)

    def weight(number: int) -> Tensor:
        return torch.linspace(0.1, 0.9, 6).view(3, 2) * (1 + number)

    kept: list[Tensor] = []

    def make(seed: int) -> Fit:
        batches = Weighted(seed)
        batches.program = Program()
        return fit_of(batches.program, batches=batches)

    many = FitMany(make, [0])  # `kept` is common to all
    epochs = list(many)
    assert shared_steps == [1] * 19
    for number, each in enumerate(kept):  # as they were made, whatever came after them
        assert torch.equal(each, weight(number))
    kept.clear()
    check_against_solo(many, epochs, make, 1e-10, 1e-10)


@pytest.mark.slow
def test_states_of_members_and_solo_fits_are_interchangeable() -> None:
    make = images
    many = FitMany(make, SEEDS)
    for _ in islice(many, 2):
        pass
    states = {}
    for seed in SEEDS:
        with many.entered(seed) as fit:
            states[seed] = copied(fit.state_dict())
    solo = make(1)
    solo.load_state_dict(copied(states[1]))

    def continued(seed: int) -> Fit:
        fit = make(seed)
        fit.load_state_dict(copied(states[seed]))
        return fit

    again = FitMany(continued, SEEDS)
    with again.entered(1) as fit:
        assert_same(untimed(fit.state_dict()), untimed(states[1]))
    rest = list(solo)
    fit, expected = alone(make, 1)
    for a, b in zip(records(rest), records(expected[2:]), strict=True):
        assert a == pytest.approx(b, rel=1e-10, abs=1e-10)
    torch.testing.assert_close(values(solo), values(fit), rtol=1e-10, atol=1e-10)
    check_against_solo(again, list(again), continued, 1e-10, 1e-10)


def test_global_state_is_unchanged_between_epochs() -> None:
    pyro.param("mine", torch.ones(2))
    np.random.normal()  # leaves one half of a pair
    before = random.getstate(), repr(np.random.get_state()), torch.get_rng_state()
    many = FitMany(batch_norm, SEEDS)
    for _ in many:
        for fit in many.fits.values():
            for tensor in fit.svi.modules[0].state_dict().values():
                assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    assert before[:2] == (random.getstate(), repr(np.random.get_state()))
    assert torch.equal(before[2], torch.get_rng_state())
    assert list(pyro.get_param_store()) == ["mine"]


def test_own_streams_match_a_seeded_process() -> None:
    def draw() -> tuple[float, ...]:
        small, large = float(torch.randn(3).sum()), float(torch.randn(17).sum())
        return np.random.normal(), np.random.rand(), random.random(), random.gauss(0, 1), small, large

    expected = {}
    for seed in SEEDS:
        pyro.set_rng_seed(seed)
        expected[seed] = [draw() for _ in range(5)]
    streams = {seed: OwnStreams(seed) for seed in SEEDS}
    found: dict[int, list[Any]] = {seed: [] for seed in SEEDS}
    with restored_streams():
        for _ in range(5):
            for seed in SEEDS:
                with streams[seed].in_place():
                    found[seed].append(draw())
    assert found == expected


def test_invalid_members_are_rejected() -> None:
    fit = plain(0)
    with pytest.raises(ValueError, match="must build a new Fit"):
        FitMany(lambda seed: fit, SEEDS)
    with pytest.raises(ValueError, match="a different seed"):
        FitMany(plain, [1, 1])
    with pytest.raises(TypeError, match="return a Fit"):
        FitMany(lambda seed: None, SEEDS)  # type: ignore[arg-type, return-value]
