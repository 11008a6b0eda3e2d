"""Fits in which one image is NaN in one step: run by the test, and as a script in each of several processes."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro
import torch
from helpers.programs import small_vae
from helpers.sharded_fits import Uneven, fit_of
from torch import Tensor

from pyro_vae import cli, ranks
from pyro_vae.errors import NonFiniteError
from pyro_vae.infer import ELBO
from pyro_vae.runs import Checkpoints, checkpoint, run_with_checkpoints

BATCHES, FAILS_AT = 5, 12  # of an epoch; the index of the step


class Planted(Uneven):
    """Images of which the last one of a batch is NaN in one step, at each attempt or at the first only."""

    def __init__(self, program: Any, *, once: bool) -> None:
        super().__init__((3, 2), program)
        self.once, self.failures = once, 0
        self.factor = torch.ones(len(self.gray))

    def __call__(self, epoch: int) -> Iterator[Tensor]:
        for index, batch in enumerate(super().__call__(epoch)):
            if BATCHES * epoch + index == FAILS_AT and not (self.once and self.failures):
                self.failures += 1
                self.factor[batch[-1]] = torch.nan
            yield batch
            self.factor.fill_(1.0)

    def observe(self, batch: Tensor) -> Tensor:
        return super().observe(batch) * self.factor[batch][:, None, None]


def planted(max_rollbacks: int, *, once: bool) -> dict[str, Any]:
    """Return the parameters, step, rollbacks and error of a fit, and the parameters before its last step."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    fit = fit_of(small_vae(), ELBO(), "recorded", ema=0)
    fit.batches = Planted(None, once=once)
    folder = Path(ranks.broadcast(tempfile.mkdtemp()))
    checkpoints = Checkpoints(folder, {}, lambda step: step % BATCHES == 0)
    error, before, take = "", {}, fit.svi.step

    def step(*args: Any, **kwargs: Any) -> Tensor:
        before.update(copies(fit))
        return take(*args, **kwargs)

    fit.svi.step = step  # type: ignore[method-assign]
    try:
        for _ in run_with_checkpoints(
            fit, checkpoints, every_seconds=0, should_stop=lambda: False, max_rollbacks=max_rollbacks
        ):
            pass
    except NonFiniteError as failure:
        error = str(failure)
    return {"error": error, "params": copies(fit), "before": before, "end": [fit.svi.steps, fit.rollbacks]}


def copies(fit: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in fit.svi.optim.params.items()}


def all_planted() -> dict[str, Any]:
    return {"stop": planted(0, once=False), "once": planted(3, once=True), "always": planted(2, once=False)}


if __name__ == "__main__":
    with cli.exit_status(), ranks.process_group("cpu"):
        torch.set_default_dtype(torch.float64)
        results = all_planted()
        checkpoint.save(Path(sys.argv[1]) / str(ranks.rank()), results)
