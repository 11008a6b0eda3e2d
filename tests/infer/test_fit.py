"""The training loop: repeatable, unaffected by evaluation, resumable, and stopped early."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.fits import BATCHES, EPOCHS, SIZE, Fixed, Inverted, new_fit
from helpers.oracles import LinearGaussian
from helpers.programs import small_vae
from torch import Tensor, nn

from pyro_vae.errors import NonFiniteError
from pyro_vae.evaluate import log_weights, score
from pyro_vae.infer import ELBO, IWAE, SVI, BetaELBO, Epoch, Fit, Optim, schedules
from pyro_vae.infer.objectives.particles import draw_particles
from pyro_vae.infer.validation import validate
from pyro_vae.model import VAE
from pyro_vae.runs import checkpoint
from pyro_vae.trace import Batch, derive_seed, read_only


def train(**arguments: object) -> tuple[VAE, list[dict]]:
    pyro.set_rng_seed(0)
    vae = small_vae()
    records = [epoch.as_dict() for epoch in new_fit(vae, **arguments)]
    return vae, [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.equal(p, q) for p, q in pairs)


def test_two_fits_in_one_process_are_identical() -> None:
    first, second = train(), train()
    assert same(first[0], second[0])
    assert first[1] == second[1]


def test_validation_does_not_change_training() -> None:
    assert same(train(valid=None)[0], train()[0])


def test_interleaved_fit_does_not_change_training() -> None:
    plain, _ = train()
    pyro.set_rng_seed(0)
    vae = small_vae()
    with torch.random.fork_rng():
        other = iter(new_fit(small_vae()))
    for _ in new_fit(vae):
        with torch.random.fork_rng():
            next(other)
    assert same(plain, vae)


@pytest.mark.parametrize("stop", range(1, EPOCHS))
def test_resumed_fit_is_bit_identical(stop: int) -> None:
    expected, records = train()
    pyro.set_rng_seed(0)
    interrupted = new_fit(small_vae())
    for _, _ in zip(range(stop), interrupted, strict=False):
        pass
    state = torch.utils._pytree.tree_map_only(Tensor, torch.clone, interrupted.state_dict())

    pyro.set_rng_seed(99)
    vae = small_vae()
    resumed = new_fit(vae)
    resumed.load_state_dict(state)
    rest = [epoch.as_dict() for epoch in resumed]
    assert same(vae, expected)
    assert [r["elbo"] for r in rest] == [r["elbo"] for r in records[stop:]]
    assert [r["learning_rate"] for r in rest] == [r["learning_rate"] for r in records[stop:]]


def test_reported_elbo_is_that_of_the_epoch() -> None:
    """With a tiny learning rate the mean over epochs is the ELBO of the initial weights."""
    pyro.set_rng_seed(0)
    vae = small_vae()
    batches = Fixed()
    svi = SVI(vae.model, vae.guide, Optim(torch.optim.Adam, {"lr": 1e-30}), IWAE(5))
    records = list(Fit(svi, batches, 40))
    found = torch.tensor([record.elbo for record in records])
    expected = torch.tensor(
        [-float(ELBO(50).loss(vae.model, vae.guide, x)) for e in range(10) for x in map(batches.observe, batches(e))]
    )
    expected = expected.view(10, BATCHES).sum(1) / batches.num_images
    error = (found.std() ** 2 / 40 + expected.std() ** 2 / 10).sqrt()
    assert (found.mean() - expected.mean()).abs() < 4 * error  # false alarms 6e-5
    assert all(record.objective > record.elbo for record in records)
    assert [record.step for record in records] == [BATCHES * (e + 1) for e in range(40)]


def test_early_stopping_restores_the_best_epoch() -> None:
    pyro.set_rng_seed(0)
    vae = small_vae()
    fit = new_fit(vae, epochs=50, patience=4)
    fit.batches = Inverted()
    records = list(fit)
    elbos = [record.valid_elbo for record in records]
    best = elbos.index(max(elbos))
    assert len(records) == best + 1 + 4 < 50
    assert validate(vae.model, vae.guide, Batch(Fixed().valid), fit.seed)[0] == pytest.approx(elbos[best], rel=1e-12)


def test_nan_validation_elbo_is_never_the_best() -> None:
    fit = new_fit(small_vae(), epochs=50, patience=5)
    list(zip(range(1), fit, strict=False))
    for epoch, elbo in enumerate([-0.5, float("nan"), -6.0]):
        fit.best = fit.best.keep_better(Epoch(epoch, 0, 0.0, 0.0, elbo, 0.0, 0.0, 0.0), fit.svi)
    assert (fit.best.value, fit.best.epoch) == (-0.5, 0)


class Bias:
    """A program whose only parameter is a `pyro.param`, with a name that other programs use too."""

    def __init__(self, start: float) -> None:
        self.start = start

    def model(self, x: Tensor) -> None:
        bias = pyro.param("bias", torch.full((3, 2), self.start))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("x", dist.Bernoulli(logits=bias).to_event(2), obs=x)

    def guide(self, x: Tensor) -> None:
        pass


def test_program_of_params_survives_an_interruption() -> None:
    """After an exception in the first epoch, training continues with the same tensors."""

    class Interrupted(Fixed):
        def __call__(self, epoch: int) -> Iterator[Tensor]:
            for number, x in enumerate(super().__call__(epoch)):
                if stop and number == 2:
                    raise KeyboardInterrupt
                yield x

    program = Bias(2.0)
    fit = new_fit(program, epochs=30)
    fit.batches = Interrupted()
    stop = True
    with pytest.raises(KeyboardInterrupt):
        next(iter(fit))
    stop = False
    elbos = [record.valid_elbo for record in fit]
    assert elbos[-1] > elbos[0] + 0.1  # parameters detached from the program would not train
    assert fit.state_dict()["svi"]["params"].keys() == {"bias"}


def test_fits_with_equal_parameter_names_are_independent() -> None:
    x = Fixed().valid
    first, second = Bias(2.0), Bias(-3.0)
    fit = new_fit(first)
    list(fit)
    before = score(first.model, first.guide, x, 1).elbo.mean()
    list(new_fit(second))
    assert score(first.model, first.guide, x, 1).elbo.mean() != pytest.approx(before)  # the store is the second fit's
    with fit.scope():
        assert score(first.model, first.guide, x, 1).elbo.mean() == before


def test_images_have_equal_weight_whatever_the_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 12, 12 and 8, for a program without latents, whose ELBO is log p(x)."""

    class Uneven(Fixed):
        def __call__(self, epoch: int) -> Iterator[Tensor]:
            yield from torch.arange(self.num_images).split(12)

        def observe(self, batch: Tensor) -> Tensor:
            return self.valid[batch]

    monkeypatch.setattr("pyro_vae.infer.validation._VALID_BATCH", 12)
    program, batches = Bias(2.0), Uneven()
    svi = SVI(program.model, program.guide, Optim(torch.optim.Adam, {"lr": 1e-30}), ELBO())
    (record,) = Fit(svi, batches, 1, valid=batches.valid)
    log_p = dist.Bernoulli(logits=torch.tensor(2.0)).log_prob(batches.valid).sum((1, 2))
    parts = [float(part.mean()) for part in log_p.split(12)]
    assert sum(parts) / 3 != pytest.approx(float(log_p.mean()), abs=1e-3)
    for found in (record.elbo, record.objective, record.valid_elbo):
        assert found == pytest.approx(float(log_p.mean()), rel=1e-12)


def test_patience_needs_validation_images() -> None:
    with pytest.raises(ValueError, match="patience needs validation images"):
        new_fit(small_vae(), valid=None, patience=1)


def test_nonfinite_loss_raises_with_its_step() -> None:
    pyro.set_rng_seed(0)
    vae = small_vae()
    fit = new_fit(vae)
    for _, _ in zip(range(2), fit, strict=False):
        pass
    with torch.no_grad():
        vae.prior.loc.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=f"at step {2 * BATCHES} "):
        next(iter(fit))


def test_prior_can_be_replaced_in_the_model_function() -> None:
    class HeavyTails(VAE):
        def model(self, x: Tensor) -> None:
            pyro.module("vae", self)
            with pyro.plate("data", x.shape[0]):
                z = pyro.sample("z", dist.StudentT(3.0, torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", self.likelihood(z), obs=x)

    pyro.set_rng_seed(0)
    standard = small_vae()
    heavy = HeavyTails(standard.prior, standard.likelihood, standard.posterior)
    x = Fixed().valid
    losses = [record.elbo for record in new_fit(heavy, epochs=30)]
    assert losses[-1] > losses[0]
    found = log_weights(heavy.model, heavy.guide, x, 40, seed=0)
    normal = log_weights(standard.model, standard.guide, x, 40, seed=0)
    # The draws are equal, so that the weights differ only by the ratio of the priors.
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(derive_seed(0, ""))
        z = standard.posterior(x).expand([40, len(x)]).sample()
    ratio = dist.StudentT(3.0, 0.0, 1.0).log_prob(z).sum(-1) - dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(found - normal, ratio.double(), rtol=1e-9, atol=1e-9)


def test_learned_guide_reaches_the_evidence() -> None:
    """A one-dimensional linear-Gaussian program: the mean-field guide contains the posterior; gap < 0.01 nats."""
    program = LinearGaussian(1)
    x = program.simulate(64)

    class Guide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Linear(7, 1)
            self.log_scale = nn.Parameter(torch.zeros(1))

        def guide(self, x: Tensor) -> None:
            pyro.module("guide", self)
            with pyro.plate("data", x.shape[0]):
                pyro.sample("z", dist.Normal(self.loc(x), self.log_scale.exp()).to_event(1))

    class Whole:
        num_images = 64

        def __call__(self, epoch: int) -> Iterator[Tensor]:
            yield x

        def observe(self, batch: Tensor) -> Tensor:
            return batch

    guide = Guide()
    optim = Optim(torch.optim.Adam, {"lr": 0.03}, schedules.per_step(schedules.cosine, 1500))
    for _ in Fit(SVI(program.model, guide.guide, optim, ELBO()), Whole(), 1500):
        pass
    elbo = score(program.model, guide.guide, x, 2000, seed=0).elbo
    assert program.log_evidence(x).mean().item() - elbo.mean() < 0.01


class OneBatch(Fixed):
    """Epochs of one batch, whose training ELBO belongs to the parameters before the step."""

    def __call__(self, epoch: int) -> Iterator[Tensor]:
        yield next(super().__call__(epoch))


def test_elbo_under_a_warm_up_matches_the_checkpoint(tmp_path: Path) -> None:
    """beta rises to 4 over 5 epochs; the reported training and validation ELBOs do not include it."""

    def new() -> tuple[VAE, Fit]:
        pyro.clear_param_store()
        vae, batches = small_vae(), OneBatch()
        batches.num_images = SIZE
        optim = Optim(torch.optim.Adam, {"lr": 0.02})
        svi = SVI(vae.model, vae.guide, optim, BetaELBO(1, 4.0, warmup_steps=5))
        return vae, Fit(svi, batches, EPOCHS, valid=batches.valid)

    _, fit = new()
    records = []
    for epoch in fit:
        checkpoint.save(tmp_path / f"{fit.epoch}.pt", fit.state_dict())
        records.append(epoch)
    assert all(abs(record.objective - record.elbo) > 0.01 for record in records if record.index != 1)  # beta = 4/3
    for record in records:
        vae, again = new()
        again.load_state_dict(checkpoint.load(tmp_path / f"{record.index + 1}.pt"))
        seed = derive_seed(0, "batch", 0)
        with read_only(vae.model, vae.guide, x=Fixed().valid, seed=seed, purpose="validation"), torch.no_grad():
            found = draw_particles(vae.model, vae.guide, Fixed().valid, 1).log_w.mean()
        assert float(found) == pytest.approx(record.valid_elbo, rel=1e-12)

    for record in records[1:]:
        vae, again = new()
        again.load_state_dict(checkpoint.load(tmp_path / f"{record.index}.pt"))  # restores its random streams too
        x = again.batches.observe(next(iter(again.batches(record.index))))
        found = ELBO().bounds(vae.model, vae.guide, x)[1].mean()
        assert float(found) == pytest.approx(record.elbo, rel=1e-12)


def test_epoch_prints_one_line() -> None:
    epoch = Epoch(3, 30, -32.126, -33.0, -31.904, 0.44, 1e-3, 20.0)
    assert str(epoch) == "epoch 3: ELBO -32.13, validation ELBO -31.90 nats, 0.4 s"
    alone = Epoch(3, 30, -32.126, -33.0, None, 0.44, 1e-3, None)
    assert str(alone) == "epoch 3: ELBO -32.13 nats, 0.4 s"
    lossy = Epoch(3, 30, None, -33.0, None, 0.44, 1e-3, 20.004)
    assert str(lossy) == "epoch 3: validation distortion 20.00 nats, 0.4 s"
    assert str(Epoch(3, 30, None, -33.0, None, 0.44, 1e-3, None)) == "epoch 3: objective -33.00 nats, 0.4 s"


def test_seconds_of_an_epoch_exclude_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    class Slow(Fixed):
        def observe(self, batch: Tensor) -> Tensor:
            now[0] += 1.0
            return super().observe(batch)

    def slow(*arguments: object) -> tuple[float, float]:
        now[0] += 1000.0
        return -1.0, 1.0

    monkeypatch.setattr("pyro_vae.infer.fit.validate", slow)
    monkeypatch.setattr("pyro_vae.infer.fit.time.perf_counter", lambda: now[0])
    svi = SVI(*(lambda vae: (vae.model, vae.guide))(small_vae()), Optim(torch.optim.Adam, {"lr": 0.01}), ELBO())
    batches = Slow()
    assert [epoch.seconds for epoch in Fit(svi, batches, 2, valid=batches.valid)] == [BATCHES, BATCHES]
