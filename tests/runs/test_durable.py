"""A fit that diverges, exhausts memory or disk, or is asked to stop loses nothing."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from helpers.bits import assert_same, records, untimed
from helpers.fits import BATCHES, EPOCHS, Fixed
from helpers.programs import small_vae
from torch import Tensor, nn

from pyro_vae.errors import NonFiniteError, OutOfMemoryError
from pyro_vae.infer import ELBO, SVI, Fit, Optim, schedules
from pyro_vae.infer.validation import validate
from pyro_vae.runs import Checkpoints, checkpoint, run_with_checkpoints

pytestmark = pytest.mark.on_device

NEVER = math.inf
EPOCH = 2  # epoch of the fault


class Hurt(Fixed):
    """Images for which `hurt` is called before one of the batches."""

    at: tuple[int, int] | None = None
    hurt: Callable[[], object]
    heal: Callable[[], object] = staticmethod(lambda: None)

    def __init__(self) -> None:
        super().__init__()
        self.shift = torch.zeros(())

    def __call__(self, epoch: int) -> Iterator[Tensor]:
        for number, batch in enumerate(super().__call__(epoch)):
            if (epoch, number) == self.at:
                self.hurt()
            else:
                self.heal()
            yield batch

    def observe(self, batch: Tensor) -> Tensor:
        return super().observe(batch) + self.shift


class Scaled(ELBO):
    """The ELBO times a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.ones(())

    def bounds(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        objective, elbo = super().bounds(*args, **kwargs)
        return objective * self.factor, elbo


class GradientTimes(torch.autograd.Function):
    """The identity, with its gradient multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.saved_tensors[0], None


class TimesGradient(nn.Module):
    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, value: Tensor) -> Tensor:
        return GradientTimes.apply(value, self.factor)


def new_fit(graph: str | None = None, seed: int = 0) -> tuple[Fit, dict[str, Tensor]]:
    """Return a fit, and tensors that make it diverge when filled with non-finite values."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    vae, batches, objective = small_vae(), Hurt(), Scaled()
    weight, factor = vae.likelihood.net[0][0][0].weight, torch.ones(())
    vae.likelihood.net.append(TimesGradient(factor))
    optim = Optim(torch.optim.Adam, {"lr": 0.02, "fused": True}, schedules.per_step(schedules.cosine, EPOCHS * BATCHES))
    svi = SVI(vae.model, vae.guide, optim, objective, execution=graph)
    harm = {"data": batches.shift, "loss": objective.factor, "gradient": factor, "weight": weight.detach()}
    return Fit(svi, batches, EPOCHS, valid=Fixed().valid, ema=0.6), harm


def history(folder: Path) -> Checkpoints:
    return Checkpoints(folder, {}, lambda step: step == 1 or step % BATCHES == 0)


def run(fit: Fit, folder: Path, rollbacks: int = 0, seconds: float = NEVER) -> list[Any]:
    return list(
        run_with_checkpoints(
            fit, history(folder), every_seconds=seconds, should_stop=lambda: False, max_rollbacks=rollbacks
        )
    )


def copied(fit: Fit) -> dict[str, Any]:
    state = {part: fit.state_dict()[part] for part in ("svi", "average")}
    return torch.utils._pytree.tree_map_only(Tensor, torch.clone, state)


# Non-finite values


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("number", [0, 1, BATCHES - 1])
@pytest.mark.parametrize("where", ["data", "loss", "gradient", "weight"])
@pytest.mark.parametrize("graph", [None, "recorded"])
def test_nonfinite_value_stops_the_fit_before_the_weights_change(
    graph: str | None, where: str, number: int, value: float, tmp_path: Path, promised: Callable[[str], None]
) -> None:
    fit, harm = new_fit(graph)
    before: dict[str, Any] = {}

    def hurt() -> None:
        harm[where].fill_(value)
        before.update(state=copied(fit), files={path: path.read_bytes() for path in tmp_path.iterdir()})

    fit.batches.at, fit.batches.hurt = (EPOCH, number), hurt
    with pytest.raises(NonFiniteError) as caught:
        run(fit, tmp_path)
    step = EPOCH * BATCHES + number
    assert caught.value.step == step
    assert f"at step {step} " in str(caught.value)
    last = tmp_path / f"step-{EPOCH * BATCHES:09d}.safetensors"
    assert caught.value.__notes__ == [
        f"That is batch {number} of epoch {EPOCH}.",
        f"The last good checkpoint is {last}.",
    ]
    assert_same(copied(fit), before["state"])  # weights, buffers, moments, schedule, averages
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before["files"]
    again, _ = new_fit()
    again.load_state_dict(history(tmp_path).newest()[1])
    assert all(torch.isfinite(p).all() for p in again.svi.optim.params.values())
    promised("a non-finite value stops the fit with weights and moments unchanged")


def diverging(fit: Fit, harm: dict[str, Tensor], times: int) -> Fit:
    """Make the loss infinite in one step until the learning rate has been halved `times` times."""

    def hurt() -> None:
        harm["loss"].fill_(math.inf if fit.svi.optim.lr_scale > 0.5**times else 1.0)

    fit.batches.at, fit.batches.hurt, fit.batches.heal = (EPOCH + 1, 1), hurt, lambda: harm["loss"].fill_(1.0)
    return fit


@pytest.mark.parametrize("graph", [None, "recorded"])
def test_rollback_continues_with_half_the_learning_rate(
    graph: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        epochs = run(diverging(*new_fit(graph), times=2), tmp_path, rollbacks=3)
    assert [epoch.index for epoch in epochs] == [*range(EPOCH + 1), *range(EPOCH + 1, EPOCHS)]
    assert ["Rollback 1: resuming from step 12" in line for line in caplog.messages] == [True, False]
    assert ["Rollback 2: resuming from step 12" in line for line in caplog.messages] == [False, True]
    plain, _ = new_fit(graph)
    rates = [epoch.learning_rate for epoch in run(plain, tmp_path / "plain")]
    factors = [1.0] * (EPOCH + 1) + [0.25] * (EPOCHS - EPOCH - 1)
    assert [e.learning_rate for e in epochs] == pytest.approx([r * f for r, f in zip(rates, factors, strict=True)])


def test_fit_rolls_back_from_nan_weights(tmp_path: Path) -> None:
    """The NaN weights make invalid distributions and a NaN validation ELBO, which must not prevent it."""
    fit, harm = new_fit()

    def hurt() -> None:
        harm["weight"].fill_(math.nan if fit.svi.optim.lr_scale == 1.0 else 0.1)
        with torch.no_grad():
            fit.svi.optim.params[min(fit.svi.optim.params)].fill_(math.nan if fit.svi.optim.lr_scale == 1.0 else 0.1)
            for name, p in fit.svi.optim.params.items():
                if "posterior" in name and fit.svi.optim.lr_scale == 1.0:
                    p.fill_(math.nan)

    fit.batches.at, fit.batches.hurt = (EPOCH, 2), hurt
    epochs = run(fit, tmp_path, rollbacks=1)
    assert [epoch.index for epoch in epochs] == list(range(EPOCHS))
    assert fit.rollbacks == 1


def test_nonfinite_validation_elbo_is_nan_and_not_an_error() -> None:
    fit, _ = new_fit()
    next(iter(fit))
    with torch.no_grad():
        for p in fit.svi.optim.params.values():
            p.fill_(math.nan)
    assert math.isnan(validate(fit.svi.model, fit.svi.guide, fit.valid, fit.seed)[0])


def test_number_of_rollbacks_is_limited(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit = diverging(*new_fit(), times=99)
    with caplog.at_level(logging.WARNING, "pyro_vae"), pytest.raises(NonFiniteError, match="at step 13 ") as caught:
        run(fit, tmp_path, rollbacks=3)
    assert len(caplog.messages) == 3
    assert "step-000000012.safetensors" in caught.value.__notes__[1]


def test_run_with_rollbacks_stopped_at_any_step_ends_bit_identical(
    tmp_path: Path, promised: Callable[[str], None]
) -> None:
    """The milestone of a rollback does not depend on the other checkpoints."""
    whole = diverging(*new_fit(), times=2)
    lines = {line["epoch"]: line for line in records(run(whole, tmp_path / "whole", rollbacks=3))}
    checkpoint.save(tmp_path / "end", whole.state_dict())
    found, lives = {}, 0
    while True:  # each pass takes one more step, including rollbacks, and then writes a checkpoint
        lives += 1
        fit = diverging(*new_fit(seed=lives - 1), times=2)
        kept = history(tmp_path / "run")
        if newest := kept.newest():
            fit.load_state_dict(newest[1])
        epochs = run_with_checkpoints(fit, kept, every_seconds=NEVER, should_stop=lambda: True, max_rollbacks=3)
        found |= {line["epoch"]: line for line in records(list(epochs))}
        if fit.finished:
            break
    assert lives >= EPOCHS * BATCHES
    checkpoint.save(tmp_path / "again", fit.state_dict())
    assert_same(*(untimed(checkpoint.load(tmp_path / name)) for name in ("again", "end")))
    assert found == lines
    promised(f"a run with two rollbacks, stopped {lives} times, ends bit-identical")


# Periodic checkpoints, requests to stop, and write errors


def test_periodic_checkpoints_do_not_change_the_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fits = []
    written: list[int] = []
    save = Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", lambda own, step, state: (written.append(step), save(own, step, state)))
    for seconds in (NEVER, 0.0):
        written.clear()
        fit, _ = new_fit()
        run(fit, tmp_path / str(seconds), seconds=seconds)
        checkpoint.save(tmp_path / "state", fit.state_dict())
        fits.append(untimed(checkpoint.load(tmp_path / "state")))
        assert sorted(set(written)) == ([1, *range(4, 25, 4)] if seconds else list(range(1, 25)))
    assert_same(*fits)


@pytest.mark.parametrize("step", [1, 6, 8, 24])
def test_fit_asked_to_stop_saves_its_state(step: int, tmp_path: Path) -> None:
    fit, _ = new_fit()
    kept = history(tmp_path)
    list(run_with_checkpoints(fit, kept, every_seconds=NEVER, should_stop=lambda: fit.svi.steps >= step))
    assert fit.svi.steps == step
    found, state = kept.newest()
    assert found == state["svi"]["steps"] == step


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError(13, "Permission denied")])
def test_unwritable_checkpoint_stops_the_fit(error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit, _ = new_fit()
    epochs = run_with_checkpoints(fit, history(tmp_path), every_seconds=NEVER, should_stop=lambda: False)
    next(epochs)
    next(epochs)
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        write(path, content[: len(content) // 2])
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(type(error), match=error.strerror):
            next(epochs)
    assert list(history(tmp_path).paths()) == [1, 4]
    assert history(tmp_path).newest()[0] == 4


# Memory


@pytest.mark.parametrize("graph", [None, "recorded"])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory"),
    ],
)
def test_out_of_memory_error_suggests_a_smaller_batch(
    error: RuntimeError, graph: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, _ = new_fit(graph)

    def hurt() -> None:
        def fail(*args: object) -> Tensor:
            raise error

        monkeypatch.setattr(fit.batches, "observe", fail)

    fit.batches.at, fit.batches.hurt = (0, 1), hurt
    with pytest.raises(OutOfMemoryError, match="in step 1, with a batch of 8 images: try --batch-size 4"):
        run(fit, tmp_path)
    assert history(tmp_path).newest()[0] == 1


def test_other_errors_are_not_treated_as_out_of_memory(tmp_path: Path) -> None:
    fit, _ = new_fit()

    def hurt() -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    fit.batches.at, fit.batches.hurt = (0, 1), hurt
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run(fit, tmp_path)
