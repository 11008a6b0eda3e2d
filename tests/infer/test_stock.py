"""Optimizers of `pyro.optim` in our SVI: the steps of stock Pyro bit for bit, or an error that says what to pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from helpers.programs import images, small_vae
from pyro.infer import Trace_ELBO
from pyro.optim import PyroOptim
from pyro.optim.clipped_adam import ClippedAdam
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from pyro_vae.infer import ELBO, SVI, Optim
from pyro_vae.model import VAE

Make = Callable[[], PyroOptim]

DECAYING = {"lr": 0.02, "clip_norm": 0.05, "lrd": 0.8, "weight_decay": 0.1}
OPTIMIZERS: dict[str, Callable[[dict[str, float] | None], PyroOptim]] = {
    "Adam": lambda clip: pyro.optim.Adam({"lr": 0.01}, clip),
    "ClippedAdam": lambda clip: PyroOptim(ClippedAdam, dict(DECAYING), clip),
    "SGD": lambda clip: pyro.optim.SGD({"lr": 0.01, "momentum": 0.9}, clip),
    "Adagrad": lambda clip: pyro.optim.Adagrad({"lr": 0.05}, clip),
    "RMSprop": lambda clip: pyro.optim.RMSprop({"lr": 0.01, "centered": True}, clip),
}
CLIPS = [None, {"clip_norm": 0.3}, {"clip_value": 0.02}, {"clip_norm": 1.0, "clip_value": 0.05}]
CASES: list[Any] = [
    pytest.param(lambda o=optimizer, c=clip: o(c), id="-".join([name, *(clip or ())]))
    for name, optimizer in OPTIMIZERS.items()
    for clip in CLIPS
] + [
    pytest.param(lambda: pyro.optim.ClippedAdam(dict(DECAYING)), id="pyro.optim.ClippedAdam"),
    pytest.param(lambda: pyro.optim.AdagradRMSProp({"eta": 0.1}), id="AdagradRMSProp"),
]
ADAGRADS = [lambda: pyro.optim.Adagrad({"lr": 0.05}), lambda: pyro.optim.AdagradRMSProp({"eta": 0.1})]


def fresh() -> VAE:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    return small_vae()


def drivers(vae: VAE, optim: PyroOptim, *, ours: bool, number: int = 1) -> list[pyro.infer.SVI]:
    kind, loss = (SVI, ELBO) if ours else (pyro.infer.SVI, Trace_ELBO)
    return [kind(vae.model, vae.guide, optim, loss()) for _ in range(number)]


def take_steps(svi: pyro.infer.SVI, number: int, seed: int = 7) -> None:
    pyro.set_rng_seed(seed)
    for x in [images(5) for _ in range(number)]:
        svi.step(x)


def values(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("make", CASES)
def test_steps_equal_those_of_stock_pyro_bit_for_bit(make: Make) -> None:
    found = []
    for ours in (False, True):
        vae = fresh()
        start = values(vae)
        take_steps(*drivers(vae, make(), ours=ours), 5)
        assert all((p != old).any() for p, old in zip(vae.parameters(), start, strict=True))
        found.append(values(vae))
    assert_same(*found)


@pytest.mark.parametrize("make", CASES)
def test_state_resumes_bit_identical(make: Make) -> None:
    """Moments, step counts, and a learning rate that has decayed or been lowered."""
    vae = fresh()
    (svi,) = drivers(vae, make(), ours=True)
    take_steps(svi, 3)
    svi.optim.scale_lr(0.5)
    state = tree_map_only(Tensor, torch.clone, svi.state_dict())
    take_steps(svi, 3)

    other = fresh()
    (resumed,) = drivers(other, make(), ours=True)
    resumed.load_state_dict(state, images(1))
    assert resumed.optim.learning_rate == state["learning_rate"] > 0
    take_steps(resumed, 3)
    assert_same(values(other), values(vae))


def test_learning_rate_is_the_decayed_one() -> None:
    (svi,) = drivers(fresh(), pyro.optim.ClippedAdam(dict(DECAYING)), ours=True)
    take_steps(svi, 3)
    assert svi.optim.learning_rate == pytest.approx(0.02 * 0.8**3)


@pytest.mark.parametrize("make", ADAGRADS)
def test_unfrozen_module_joins_an_optimizer_with_initial_state(make: Make) -> None:
    found = []
    for ours in (False, True):
        vae = fresh()
        vae.posterior.requires_grad_(False)
        (svi,) = drivers(vae, make(), ours=ours)
        with pytest.warns(UserWarning, match="not registered"):
            take_steps(svi, 2)
        vae.posterior.requires_grad_(True)
        take_steps(svi, 3)
        found.append(values(vae))
    assert_same(*found)


def test_drivers_of_one_program_share_moments_and_other_programs_do_not() -> None:
    found: list[list[Tensor]] = [[], []]
    for ours in (False, True):
        optim = pyro.optim.ClippedAdam(dict(DECAYING))
        for _ in range(2):
            vae = fresh()
            pair = drivers(vae, optim, ours=ours, number=2)
            for seed, svi in enumerate(pair * 2):
                take_steps(svi, 2, seed)
            found[ours] += values(vae)
    assert_same(*found)


@pytest.mark.parametrize("make", [CASES[-2].values[0], CASES[1].values[0]])
def test_recorded_step_clips_gradients_that_share_memory(make: Make) -> None:
    """The gradient of a sum is an expanded scalar, here shared by two parameters."""
    found = []
    for graph in (None, "recorded"):
        vae, shift, gain = fresh(), nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))

        def model(x: Tensor, vae: VAE = vae, shift: Tensor = shift, gain: Tensor = gain) -> None:
            pyro.param("idle", torch.zeros(2))  # has no gradient
            total = pyro.param("shift", shift).sum() + pyro.param("gain", gain).sum()
            vae.model(x)
            with pyro.plate("rows", x.shape[0]):
                pyro.factor("total", total.expand(x.shape[0]))

        svi = SVI(model, vae.guide, make(), ELBO(), execution=graph)
        take_steps(svi, 5)
        assert graph is None or not svi.recorded._refused
        found.append([*values(vae), pyro.param("shift").detach(), pyro.param("gain").detach()])
    assert (found[0][-1] > 0).all()
    assert_same(*found)


def used() -> PyroOptim:
    vae, optim = fresh(), pyro.optim.Adam({"lr": 0.01})
    take_steps(*drivers(vae, optim, ours=False), 1)
    return optim


def loaded() -> PyroOptim:
    optim = pyro.optim.Adam({"lr": 0.01})
    optim.set_state(used().get_state())
    return optim


class Own(PyroOptim):
    pass


ADAM = r"pyro_vae\.Optim\(torch\.optim\.Adam, \{\.\.\.\}"
SCHEDULED = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.01}, "gamma": 0.9}
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "scheduler": (lambda: pyro.optim.ExponentialLR(dict(SCHEDULED)), rf"pass {ADAM}, schedule=\.\.\.\)"),
    "arguments by name": (lambda: pyro.optim.Adam(lambda name: {"lr": 0.01}), rf"one set of arguments.*pass {ADAM}"),
    "clips by name": (lambda: pyro.optim.Adam({}, lambda module, name: {}), rf"pass {ADAM}, clip_args=\{{\.\.\.\}}\)"),
    "another key": (lambda: pyro.optim.Adam({}, {"norm": 1.0}), r"pyro_vae\.Optim clips by .* remove 'norm'"),
    "a class of its own": (lambda: Own(torch.optim.Adam, {}), rf"the steps of a Own: pass {ADAM}\)"),
    "steps taken": (used, rf"already has a state.*pass a new one, or {ADAM}\)"),
    "a state loaded": (loaded, rf"already has a state.*pass a new one, or {ADAM}\)"),
    "a torch optimizer": (
        lambda: torch.optim.SGD([torch.zeros(1)]),
        r"cannot use a SGD .*write pyro_vae\.Optim\(torch\.optim\.SGD, \{\.\.\.\}\)",
    ),
    "a class": (lambda: torch.optim.Adam, rf"cannot use a type .*write {ADAM}\)"),
    "nothing": (lambda: None, rf"cannot use a NoneType .*write {ADAM}\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unsupported_optimizer_is_rejected_with_one_line(case: str) -> None:
    make, words = REFUSED[case]
    with pytest.raises(ValueError, match=words) as caught:
        drivers(fresh(), make(), ours=True)
    assert len(str(caught.value).splitlines()) == 1


def test_our_optimizer_is_used_unchanged_and_clips_too() -> None:
    found = []
    for make in (Optim, PyroOptim):
        vae, optim = fresh(), make(torch.optim.Adam, {"lr": 0.01}, clip_args={"clip_norm": 0.3})
        (svi,) = drivers(vae, optim, ours=True)
        assert (svi.optim is optim) == (make is Optim)
        take_steps(svi, 5)
        found.append(values(vae))
    assert_same(*found)


def test_save_and_load_of_an_adopted_optimizer_raise(tmp_path: Path) -> None:
    optim = pyro.optim.Adam({"lr": 0.01})
    optim.save(str(tmp_path / "before"))
    drivers(fresh(), optim, ours=True)
    with pytest.raises(RuntimeError, match=r"svi\.state_dict\(\) holds its state"):
        optim.save(str(tmp_path / "after"))
    with pytest.raises(RuntimeError, match=r"svi\.load_state_dict restores it"):
        optim.load(str(tmp_path / "before"))
