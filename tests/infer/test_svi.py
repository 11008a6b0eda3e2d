"""The driver: the numbers of stock Pyro, an error for programs that would not train, and no non-finite step."""

from __future__ import annotations

import pyro
import pytest
import torch
from helpers.programs import images, small_vae
from pyro.infer import Trace_ELBO
from torch import Tensor

from pyro_vae.errors import NonFiniteError
from pyro_vae.infer import ELBO, IWAE, SVI, Optim, load_program_state
from pyro_vae.model import VAE

ADAM = {"lr": 0.01}


def driver(vae: VAE, loss: ELBO | None = None, **arguments: object) -> SVI:
    return SVI(vae.model, vae.guide, Optim(torch.optim.Adam, ADAM | arguments), loss or ELBO())


def take_steps(svi: pyro.infer.SVI, number: int) -> list[float]:
    pyro.set_rng_seed(7)
    batches = [images(5) for _ in range(number)]
    return [float(svi.step(x)) for x in batches]


@pytest.mark.parametrize(("fused", "tolerance"), [(False, 0.0), (True, 1e-6)])
def test_sixty_steps_equal_those_of_stock_pyro(fused: bool, tolerance: float, device: torch.device) -> None:
    """Parameters to the bit on the CPU, without a fused optimizer.

    On CUDA up to rounding, 1e-12 in float64: sums run in another order, and multiplications and additions are fused.
    """
    if device.type == "cuda":
        tolerance = max(tolerance, 5_000 * torch.finfo(torch.get_default_dtype()).eps)
    pyro.set_rng_seed(0)
    stock_vae, vae = small_vae(), small_vae()
    vae.load_state_dict(stock_vae.state_dict())
    start = [p.clone() for p in vae.parameters()]
    stock = pyro.infer.SVI(stock_vae.model, stock_vae.guide, pyro.optim.Adam(dict(ADAM)), Trace_ELBO())
    expected = take_steps(stock, 60)
    pyro.clear_param_store()
    found = take_steps(driver(vae, fused=fused), 60)

    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-6, atol=0)
    for before, p, reference in zip(start, vae.parameters(), stock_vae.parameters(), strict=True):
        torch.testing.assert_close(p, reference, rtol=tolerance, atol=tolerance)
        assert (p != before).all()


def test_stock_svi_takes_our_objectives() -> None:
    vae = small_vae()
    losses = take_steps(pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam(dict(ADAM)), IWAE(3)), 200)
    assert sum(losses[-20:]) < sum(losses[:20])


def test_our_svi_takes_pyros_objectives() -> None:
    vae, reference = small_vae(), small_vae()
    reference.load_state_dict(vae.state_dict())
    expected = take_steps(driver(reference), 10)
    pyro.clear_param_store()
    found = take_steps(SVI(vae.model, vae.guide, Optim(torch.optim.Adam, ADAM), Trace_ELBO()), 10)
    assert found == pytest.approx(expected, rel=1e-12)


def test_elbo_of_a_step_is_that_of_its_particles() -> None:
    vae, x = small_vae(), images(5)
    pyro.set_rng_seed(3)
    expected = ELBO(4).bounds(vae.model, vae.guide, x)[1].sum()
    svi = driver(vae, IWAE(4))
    pyro.set_rng_seed(3)
    loss = svi.step(x)
    torch.testing.assert_close(svi.elbo, expected)
    assert svi.elbo < -loss  # Jensen


def test_second_program_with_the_same_names_is_rejected() -> None:
    take_steps(driver(small_vae()), 1)
    with pytest.raises(ValueError, match=r"No parameter trains|would not train"):
        take_steps(driver(small_vae()), 1)


def test_program_without_pyro_module_is_rejected() -> None:
    vae = small_vae()

    class Silent(VAE):
        def model(self, x: Tensor) -> None:
            with pyro.plate("data", x.shape[0]):
                z = pyro.sample("z", self.prior())
                pyro.sample("x", self.likelihood(z), obs=x)

        guide = VAE.guide

    class Mute(Silent):
        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", x.shape[0]):
                pyro.sample("z", self.posterior(x))

    parts = (vae.prior, vae.likelihood, vae.posterior)
    silent = driver(Mute(*parts))
    for _ in range(2):  # rejected at every attempt
        with pytest.raises(ValueError, match="would not train"):
            take_steps(silent, 1)
    losses = take_steps(driver(Silent(*parts)), 100)  # the guide registers the module, so that all of it trains
    assert sum(losses[-10:]) < sum(losses[:10])


def test_guide_function_with_an_unregistered_net_is_rejected() -> None:
    """The net is visible only in the function's closure."""
    vae = small_vae()
    encoder = vae.posterior

    def guide(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", encoder(x))

    class Half(VAE):
        def model(self, x: Tensor) -> None:
            pyro.module("decoder", self.likelihood)
            with pyro.plate("data", x.shape[0]):
                z = pyro.sample("z", self.prior())
                pyro.sample("x", self.likelihood(z), obs=x)

    half = Half(vae.prior, vae.likelihood, vae.prior)
    svi = SVI(half.model, guide, Optim(torch.optim.Adam, ADAM), ELBO())
    with pytest.raises(ValueError, match="would not train"):
        svi.step(images(5))


@pytest.mark.parametrize("fused", [False, True])
def test_unfrozen_module_joins_the_optimizer(fused: bool) -> None:
    pyro.set_rng_seed(0)
    vae = small_vae()
    encoder = vae.posterior.requires_grad_(False)
    svi = driver(vae, fused=fused)
    with pytest.warns(UserWarning, match="not registered"):
        take_steps(svi, 2)
    before = [p.clone() for p in encoder.parameters()]
    encoder.requires_grad_(True)
    take_steps(svi, 3)
    assert all((p != old).all() for p, old in zip(encoder.parameters(), before, strict=True))
    state = torch.utils._pytree.tree_map_only(Tensor, torch.clone, svi.state_dict())
    expected = take_steps(svi, 5)
    pyro.clear_param_store()
    other = driver(small_vae(), fused=fused)
    other.load_state_dict(state, images(1))
    assert take_steps(other, 5) == expected


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nonfinite_step_leaves_the_weights_unchanged(where: str, fused: bool) -> None:
    vae = small_vae()
    svi = driver(vae, fused=fused)
    take_steps(svi, 3)
    if where == "gradient":
        vae.likelihood.net[0][0][0].weight.register_hook(lambda gradient: gradient * float("nan"))
    else:
        vae.prior.loc.fill_(float("nan"))
    before = [p.detach().clone() for p in vae.parameters()]
    with pyro.validation_enabled(False), pytest.raises(NonFiniteError, match="at step 3 "):
        svi.step(images(5))
    assert all(torch.equal(p, old) for p, old in zip(vae.parameters(), before, strict=True))
    if where == "loss":  # the next step with a valid parameter succeeds
        vae.prior.loc.zero_()
        svi.step(images(5))
        assert all((p != old).any() for p, old in zip(vae.parameters(), before, strict=True))


def test_state_of_another_program_is_rejected_without_changes() -> None:
    vae = small_vae()
    svi = driver(vae)
    take_steps(svi, 1)
    before = [p.detach().clone() for p in vae.parameters()]
    state = torch.utils._pytree.tree_map_only(Tensor, torch.zeros_like, svi.state_dict())
    less = state | {"params": dict(list(state["params"].items())[1:])}
    smaller = state | {"params": {name: value[:1] for name, value in state["params"].items()}}
    strange = [
        {},
        state | {"params": []},
        state | {"modules": []},
        state | {"params": dict.fromkeys(state["params"], 1)},
    ]
    for bad in (less, smaller, *strange):
        with pytest.raises(ValueError, match=r"in only one of them|has shape|not belong to this program"):
            load_program_state(vae.model, vae.guide, bad, images(1))
        assert all(torch.equal(p, old) for p, old in zip(vae.parameters(), before, strict=True))


def test_state_continues_a_run_bit_identical() -> None:
    pyro.set_rng_seed(0)
    vae = small_vae()
    svi = driver(vae, fused=True)
    take_steps(svi, 20)
    state = svi.state_dict()
    state = torch.utils._pytree.tree_map_only(Tensor, torch.clone, state)
    expected = take_steps(svi, 20)

    pyro.clear_param_store()
    other = small_vae()
    resumed = driver(other, fused=True)
    resumed.load_state_dict(state, images(1))
    assert take_steps(resumed, 20) == expected
    assert all(torch.equal(p, q) for p, q in zip(other.parameters(), vae.parameters(), strict=True))


def test_tensor_learning_rate_is_scheduled_recorded_and_resumed_in_place() -> None:
    """As on a CUDA device, where a captured step reads that tensor."""

    def new(rate: object) -> SVI:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        vae = small_vae()
        optim = Optim(torch.optim.Adam, {"lr": rate, "fused": True}, lambda step: 1 / (1 + step))
        return SVI(vae.model, vae.guide, optim, ELBO())

    expected = take_steps(new(0.01), 5)
    svi = new(torch.tensor(0.01))
    assert take_steps(svi, 5) == pytest.approx(expected, rel=1e-6)
    assert float(svi.optim.learning_rate) == pytest.approx(0.01 / 5)
    state = torch.utils._pytree.tree_map_only(Tensor, torch.clone, svi.state_dict())
    resumed = new(torch.tensor(0.01))
    resumed.load_state_dict(state, images(1))
    rate = resumed.optim.optimizer.param_groups[0]["lr"]
    assert float(rate) == pytest.approx(0.01 / 6)
    resumed.step(images(5))
    assert resumed.optim.optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(0.01 / 7)
