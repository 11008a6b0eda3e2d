"""Early stopping in fits whose objective changes while it warms up."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from helpers.fits import BATCHES, Inverted
from helpers.programs import small_vae

from pyro_vae.infer import SVI, BetaELBO, Fit, Optim

WARMUP, PATIENCE = 9, 3  # epochs


def warming_fit(warmup_steps: int = WARMUP * BATCHES, **arguments: object) -> Fit:
    """Return a fit of the small VAE with a beta that rises for some steps."""
    pyro.set_rng_seed(0)
    vae, batches = small_vae(), Inverted()
    optim = Optim(torch.optim.Adam, {"lr": 0.02})
    svi = SVI(vae.model, vae.guide, optim, BetaELBO(beta=4.0, warmup_steps=warmup_steps))
    return Fit(svi, batches, **{"valid": batches.valid, "patience": PATIENCE, **arguments})  # type: ignore[arg-type]


def weights(fit: Fit) -> list[torch.Tensor]:
    with fit.scope():
        return [parameter.detach().clone() for parameter in fit.svi.optim.params.values()]


def test_epochs_of_the_warm_up_neither_count_nor_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """The validation ELBO falls in every epoch, so that the first one without warm-up is the best that counts."""
    elbos = iter(range(-1, -100, -1))
    monkeypatch.setattr("pyro_vae.infer.fit.validate", lambda *_: (float(next(elbos)), 0.0))
    fit = warming_fit(epochs=50)
    after_epoch = [weights(fit) for _ in fit]
    assert len(after_epoch) == WARMUP + 1 + PATIENCE
    assert all(map(torch.equal, weights(fit), after_epoch[WARMUP]))
    assert not all(map(torch.equal, after_epoch[WARMUP], after_epoch[WARMUP - 1]))


@pytest.mark.parametrize("steps", [0, 1, BATCHES, BATCHES + 1])
def test_first_candidate_ends_with_the_final_beta(steps: int) -> None:
    """beta rises until step `steps`, counted from 0, which is the last one of an epoch or not."""
    fit = warming_fit(steps, epochs=4)
    candidates = []
    for record in fit:
        assert (fit.best.parameters is not None) or fit.best.epoch == record.index
        if fit.best.parameters is not None:
            candidates.append(record.index)
    assert candidates[0] == math.ceil((steps + 1) / BATCHES) - 1


def test_run_that_ends_in_the_warm_up_keeps_its_last_weights() -> None:
    ends = []
    for patience in (PATIENCE, 0):
        fit = warming_fit(patience=patience, epochs=WARMUP - 2)
        assert len(list(fit)) == WARMUP - 2
        ends.append(weights(fit))
    assert all(map(torch.equal, *ends))


def test_patience_is_continued_from_a_state_of_the_warm_up() -> None:
    whole = [record.valid_elbo for record in warming_fit(epochs=50)]
    first = warming_fit(epochs=50)
    begun = [record.valid_elbo for _, record in zip(range(5), first, strict=False)]
    state = first.state_dict()
    again = warming_fit(epochs=50)
    again.load_state_dict(state)
    assert begun + [record.valid_elbo for record in again] == whole
