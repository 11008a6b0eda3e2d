"""Several fits in their run folders: interrupted anywhere they end with the same bits, and a failure affects one."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.bits import assert_same, untimed
from helpers.fits import BATCHES, EPOCHS, SIZE, Multiplied, new_fit
from helpers.programs import small_vae
from helpers.run_folders import epochs
from torch import Tensor

from pyro_vae.config import Config
from pyro_vae.errors import NonFiniteError
from pyro_vae.infer import Fit, FitMany
from pyro_vae.runs import Checkpoints, RunFolder, fit_many_in_folders

SEEDS = (3, 4, 5)
Make = Callable[[int], Fit]


def config(seed: int) -> Config:
    return Config(seed=seed, epochs=EPOCHS, batch_size=SIZE)


def shared(seed: int) -> Fit:
    return new_fit(small_vae(), graph="recorded", ema=0.9)


def stopping(seed: int) -> Fit:
    """The first two members stop early, at different epochs."""
    return new_fit(small_vae(), graph="recorded", patience=1 + seed - SEEDS[0])


def one_by_one(seed: int) -> Fit:
    return new_fit(small_vae())


def run(
    make: Make,
    path: Path,
    should_stop: Callable[[], bool] = lambda: False,
    every_seconds: float = math.inf,
    on_nonfinite: str = "stop",
) -> FitMany:
    configs = {seed: replace(config(seed), on_nonfinite=on_nonfinite) for seed in SEEDS}
    folders = {seed: RunFolder(path / str(seed)) for seed in SEEDS}
    many = FitMany(make, SEEDS)
    options = {"resume": True, "every_seconds": every_seconds, "should_stop": should_stop}
    list(fit_many_in_folders(many, folders, configs, **options))
    for folder in folders.values():
        folder.unlock()
    return many


def state(path: Path, seed: int) -> Any:
    folder = RunFolder(path / str(seed))
    newest = Checkpoints(folder.checkpoints, folder.config()).newest()
    assert newest is not None
    lines = [{**line, "seconds": 0.0} for line in folder.metrics()]
    return untimed(newest[1]), lines


@pytest.mark.parametrize("make", [shared, stopping, one_by_one])
def test_interrupted_fits_end_bit_identical(make: Make, tmp_path: Path) -> None:
    """Ended after 2 steps, then 4 more, then 6 more and so on, with a checkpoint after each step or only at the end."""
    run(make, tmp_path / "whole")
    for life in range(1, EPOCHS * BATCHES):
        calls = count()
        many = run(
            make,
            tmp_path / "parts",
            should_stop=lambda calls=calls, life=life: next(calls) >= 4 * life,  # called twice after each step
            every_seconds=0.0 if life % 2 else math.inf,
        )
        if all(fit.finished for fit in many.fits.values()):
            break
    assert life > 2
    for seed in SEEDS:
        assert_same(state(tmp_path / "parts", seed), state(tmp_path / "whole", seed))


class Spoiled(Multiplied):
    """Images that are NaN in the first batch of an epoch, at the first attempt if the flag is set, or always."""

    def __init__(self, epoch: int, *, once: bool) -> None:
        super().__init__()
        self.at, self.once = epoch, once

    def __call__(self, epoch: int) -> Any:
        for number, batch in enumerate(super().__call__(epoch)):
            spoils = (epoch, number) == (self.at, 0)
            self.factor.fill_(torch.nan if spoils else 1.0)
            self.at = -1 if spoils and self.once else self.at
            yield batch


def spoiled(*, once: bool) -> Make:
    def make(seed: int) -> Fit:
        fit = shared(seed)
        fit.batches = Spoiled(2 if seed == SEEDS[1] else -1, once=once)
        return fit

    return make


def weights(many: FitMany, seed: int) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in many.fits[seed].svi.optim.params.items()}


@pytest.mark.parametrize("once", [True, False])
def test_failed_member_rolls_back_or_stops_alone(once: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Seed 4 fails in epoch 2, after its milestones at the end of each epoch. The others match an undisturbed run."""
    whole = run(spoiled(once=True), tmp_path / "undisturbed", on_nonfinite="stop")
    assert list(whole.errors) == [SEEDS[1]]
    many = run(spoiled(once=once), tmp_path / "run", on_nonfinite="rollback")
    for seed in (SEEDS[0], SEEDS[2]):
        for name, value in weights(many, seed).items():
            torch.testing.assert_close(value, weights(whole, seed)[name], rtol=1e-10, atol=1e-10)
    folder = RunFolder(tmp_path / "run" / str(SEEDS[1]))
    messages = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    if once:
        assert not many.errors
        assert many.fits[SEEDS[1]].rollbacks == 1
        assert many.fits[SEEDS[1]].svi.optim.lr_scale == 0.5
        assert epochs(folder) == list(range(EPOCHS))
        assert sum("Rollback 1" in message for message in messages) == 1
        return
    assert isinstance(many.errors[SEEDS[1]], NonFiniteError)
    assert many.fits[SEEDS[1]].rollbacks == 3
    assert epochs(folder) == [0, 1]
    (message,) = [m for m in messages if "The fit of seed 4 stops here" in m and f"{folder.path}" in m]
    assert f"step-{2 * BATCHES:09d}" in message
