"""On a CUDA device: bit-identical resumption and streaming. Skipped without a device."""

from __future__ import annotations

from pathlib import Path

import pyro
import pytest
import torch
from helpers.bits import assert_same, records, untimed
from helpers.stateful import new_fit

from pyro_vae.config import Config, programs
from pyro_vae.data.batches import StreamedBatches
from pyro_vae.evaluate import log_weights
from pyro_vae.infer import SVI, Fit, Optim
from pyro_vae.runs import checkpoint, prepare


@pytest.fixture(autouse=True)
def _deterministic(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> object:
    if device.type != "cuda":
        pytest.skip("needs a CUDA device")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("graph", [None, "recorded", "compiled"])
def test_interrupted_run_ends_bit_identical(graph: str | None, tmp_path: Path) -> None:
    whole = new_fit("mixture", graph, 0, "cuda")
    epochs = []
    for epoch in whole.iterate(lambda: True):
        epochs.append(epoch)
        if epoch is None:
            checkpoint.save(tmp_path / str(whole.svi.steps), whole.state_dict())
    checkpoint.save(tmp_path / "end", whole.state_dict())
    for step in (1, 7, 15, 23, 40):
        again = new_fit("mixture", graph, 99, "cuda")
        again.load_state_dict(checkpoint.load(tmp_path / str(step)))
        rest = records(list(again))
        checkpoint.save(tmp_path / "again", again.state_dict())
        assert_same(*(untimed(checkpoint.load(tmp_path / name)) for name in ("again", "end")))
        assert rest == records(epochs)[-len(rest) :]


@pytest.mark.parametrize(("here", "there"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_checkpoint_loads_on_another_device(here: str, there: str, tmp_path: Path) -> None:
    """The fit continues there; the ELBO of each image agrees within the noise, which differs between devices."""
    fits = [new_fit("standard", None, 0, device) for device in (here, there)]
    next(iter(fits[0]))
    checkpoint.save(tmp_path / "state", fits[0].state_dict())
    fits[1].load_state_dict(checkpoint.load(tmp_path / "state"))
    next(iter(fits[1]))  # the fit continues
    fits[1].load_state_dict(checkpoint.load(tmp_path / "state"))
    found = []
    for fit in fits:
        with fit.scope():
            x = fit.valid
            found.append(log_weights(fit.svi.model, fit.svi.guide, x, 4000, seed=0).cpu())
    # Means over 4,000 draws for seven images; false alarms 4e-6.
    means, variances = ([f(w) for w in found] for f in (lambda w: w.mean(0), lambda w: w.var(0) / 4000))
    assert ((means[0] - means[1]).abs() < 5 * (variances[0] + variances[1]).sqrt()).all()


@pytest.mark.parametrize("graph", [None, "compiled"])
def test_images_on_the_host_train_bit_identical(graph: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = []
    for free in (2**40, 0):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 2**40))
        pyro.set_rng_seed(0)
        run = prepare(Config(train_images=70, test_images=5, batch_size=32, hidden_dim=8, device="cuda").resolve())
        batches = run.batches()
        assert isinstance(batches, StreamedBatches) == (free == 0)
        objective = programs.build_objective(run.config, 70)
        svi = SVI(
            run.program.model, run.program.guide, Optim(torch.optim.Adam, {"lr": 0.01}), objective, execution=graph
        )
        epochs = records(list(Fit(svi, batches, 3, valid=run.observed("valid"))))
        ends.append((epochs, {name: value.cpu() for name, value in svi.state_dict()["params"].items()}))
    assert ends[0][0] == ends[1][0]
    assert_same(ends[0][1], ends[1][1])
