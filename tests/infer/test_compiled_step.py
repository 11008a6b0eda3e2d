"""The update of a plain Adam in the compiled step: the numbers of torch and Pyro, and no trace of a non-finite step."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from helpers.programs import images, small_vae
from helpers.steps import take_steps
from torch import Tensor, nn

from pyro_vae.errors import NonFiniteError
from pyro_vae.infer import ELBO, SVI, Optim, update_graph
from pyro_vae.infer.compiled_step import CompiledStep
from pyro_vae.model import VAE

STEPS = 100
ADAM = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "fused": True}


def driver(vae: VAE, graph: str | None = "compiled", constructor: Any = torch.optim.Adam, **options: Any) -> SVI:
    optim = Optim(constructor, ADAM | options, schedule=lambda step: 1 / (1 + step / 20))
    return SVI(vae.model, vae.guide, optim, ELBO(), execution=graph)


def compiled_steps(svi: SVI) -> list[CompiledStep]:
    assert svi.recorded is not None
    return list(svi.recorded._compiled.values())


def trains_whole(svi: SVI) -> bool:
    """Return whether the latest graph contains the update, and no graph without it has been compiled."""
    latest = compiled_steps(svi)[-1]
    return latest._whole is not None and latest._gradients is None


def state(svi: SVI) -> Any:
    return copy.deepcopy(svi.state_dict())


@pytest.mark.parametrize(
    ("constructor", "weight_decay", "dtype", "tolerance"),
    [
        (torch.optim.Adam, 0.0, torch.float64, 1e-12),
        pytest.param(torch.optim.Adam, 0.1, torch.float64, 1e-12, marks=pytest.mark.slow),
        pytest.param(torch.optim.AdamW, 0.1, torch.float64, 1e-12, marks=pytest.mark.slow),
        pytest.param(torch.optim.Adam, 0.0, torch.float32, 1e-6, marks=pytest.mark.slow),
        pytest.param(torch.optim.AdamW, 0.1, torch.float32, 1e-6, marks=pytest.mark.slow),
    ],
)
def test_hundred_steps_equal_those_of_torch(
    constructor: Any, weight_decay: float, dtype: torch.dtype, tolerance: float
) -> None:
    """Including weight decay, a schedule, and a factor on the learning rate that changes."""
    torch.set_default_dtype(dtype)
    vae = small_vae()
    stock = copy.deepcopy(vae)
    svi = driver(vae, constructor=constructor, weight_decay=weight_decay)
    batches = [images(5) for _ in range(STEPS)]
    pyro.set_rng_seed(3)
    for step, x in enumerate(batches):
        svi.step(x)
        if step == 50:
            svi.optim.scale_lr(0.5)
    assert trains_whole(svi)
    assert len(compiled_steps(svi)) == 1

    pyro.clear_param_store()
    pyro.set_rng_seed(3)
    optim = constructor(stock.parameters(), **{**ADAM, "fused": False, "weight_decay": weight_decay})
    for step, x in enumerate(batches):
        optim.param_groups[0]["lr"] = 0.01 / (1 + step / 20) * (0.5 if step > 50 else 1)
        loss = -ELBO().bounds(stock.model, stock.guide, x)[0].sum()
        for p, g in zip(stock.parameters(), torch.autograd.grad(loss, list(stock.parameters())), strict=True):
            p.grad = g
        optim.step()
    for p, expected in zip(vae.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(p, expected, rtol=0, atol=tolerance * float(expected.detach().abs().max()))


def test_hundred_steps_equal_those_of_stock_pyro() -> None:
    ours = small_vae()
    stock = copy.deepcopy(ours)
    reference = pyro.infer.SVI(stock.model, stock.guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO())
    expected = take_steps(reference, STEPS)
    pyro.clear_param_store()
    optim = Optim(torch.optim.Adam, {"lr": 0.01, "fused": True})
    svi = SVI(ours.model, ours.guide, optim, ELBO(), execution="compiled")
    assert take_steps(svi, STEPS) == pytest.approx(expected, rel=1e-12)
    assert trains_whole(svi)
    for p, q in zip(ours.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-11)


class Root(nn.Module):
    """The square root of a magnitude: finite at zero, where its gradient is not."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.ones(()))

    def forward(self, value: Tensor) -> Tensor:
        return value + self.shift.abs().sqrt()


def test_nonfinite_step_changes_nothing() -> None:
    """The loss, a gradient, or an earlier step that the host has not heard of, as on CUDA; -0.0 keeps its sign."""
    vae = small_vae()
    root = Root()
    vae.likelihood.net.append(root)
    svi = driver(vae)
    take_steps(svi, 3)
    for shift, failed, message in ((math.nan, -1, 3), (0.0, -1, 3), (1.0, 2, 2)):
        with torch.no_grad():
            root.shift.fill_(shift)
            next(vae.posterior.parameters()).fill_(-0.0)
        before = [
            value.clone() for value in torch.utils._pytree.tree_leaves(svi.state_dict()) if torch.is_tensor(value)
        ]
        svi._gate.failed_step.fill_(failed)
        with pytest.raises(NonFiniteError, match=f"at step {message} "):
            svi.step(images(5))
        after = [value for value in torch.utils._pytree.tree_leaves(svi.state_dict()) if torch.is_tensor(value)]
        for old, new in zip(before, after, strict=True):
            assert old.numpy().tobytes() == new.numpy().tobytes()
    assert trains_whole(svi)
    svi.step(images(5))
    assert svi.steps == 4
    assert all((p != 0).any() for p in vae.posterior.parameters())


def test_comparing_with_the_program_leaves_the_bits_of_a_step() -> None:
    ends = []
    start = small_vae()
    for soon in (False, True):
        pyro.clear_param_store()
        svi = driver(copy.deepcopy(start))
        pyro.set_rng_seed(7)
        for x in [images(5) for _ in range(8)]:
            if svi.recorded is not None:
                svi.recorded._soon = soon
            svi.step(x)
        ends.append(state(svi))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)


def freeze(vae: VAE) -> None:
    vae.posterior.requires_grad_(False)


def unfreeze(svi: SVI, vae: VAE) -> None:
    vae.posterior.requires_grad_(True)


def replace_store(svi: SVI, vae: VAE) -> None:
    """As a checkpoint of the store that is loaded: new tensors under the old names, in the modules, too."""
    for name, p in list(vae.named_parameters()):
        module = vae.get_submodule(name.rpartition(".")[0])
        setattr(module, name.rpartition(".")[2], nn.Parameter(p.detach().clone()))
    pyro.clear_param_store()


def scale_eps(svi: SVI, vae: VAE) -> None:
    assert svi.optim.optimizer is not None
    svi.optim.optimizer.param_groups[0]["eps"] = 1e-2


def clip(svi: SVI, vae: VAE) -> None:
    svi.optim.clip_args = {"clip_norm": 0.01}


def hook(svi: SVI, vae: VAE) -> None:
    def halve(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for p in optimizer.param_groups[0]["params"]:
            p.grad = p.grad / 2 if p.grad is not None else None

    assert svi.optim.optimizer is not None
    svi.optim.optimizer.register_step_pre_hook(halve)


@pytest.mark.parametrize(
    ("prepare", "change", "whole"),
    [
        (None, clip, False),
        pytest.param(None, hook, False, marks=pytest.mark.slow),
        pytest.param(None, scale_eps, True, marks=pytest.mark.slow),
        pytest.param(None, replace_store, True, marks=pytest.mark.slow),
        pytest.param(freeze, unfreeze, True, marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore:.*not registered")
def test_change_between_steps_takes_effect(
    prepare: Callable[[VAE], None] | None, change: Callable[[SVI, VAE], None], whole: bool
) -> None:
    """The compiled run follows the one run by Pyro, whatever changes after its first steps."""
    runs = []
    start = small_vae()
    for graph in (None, "compiled"):
        pyro.clear_param_store()
        vae = copy.deepcopy(start)
        if prepare is not None:
            prepare(vae)
        svi = driver(vae, graph)
        take_steps(svi, 4)
        change(svi, vae)
        runs.append([*take_steps(svi, 6), *(float(p.detach().sum()) for p in vae.parameters())])
    assert runs[1] == pytest.approx(runs[0], rel=1e-9)
    latest = compiled_steps(svi)[-1]
    assert (update_graph.Update.of(svi._gate, latest._names) is not None) == whole


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"amsgrad": True}, {"fused": False}, {"maximize": True}])
def test_rare_options_are_left_to_the_optimizer(options: dict[str, bool]) -> None:
    runs = []
    start = small_vae()
    for graph in (None, "compiled"):
        pyro.clear_param_store()
        vae = copy.deepcopy(start)
        svi = driver(vae, graph, **options)
        runs.append([*take_steps(svi, 6), *(float(p.detach().sum()) for p in vae.parameters())])
    assert compiled_steps(svi)[-1]._whole is None
    assert runs[1] == pytest.approx(runs[0], rel=1e-9)


@pytest.mark.slow
def test_tied_weights_are_updated_once() -> None:
    runs = []
    start = small_vae()
    start.likelihood.net.insert(0, nn.Linear(2, 2))
    start.likelihood.net.insert(1, nn.Linear(2, 2))
    start.likelihood.net[1].weight = start.likelihood.net[0].weight
    for graph in (None, "compiled"):
        pyro.clear_param_store()
        vae = copy.deepcopy(start)
        svi = driver(vae, graph)
        runs.append([*take_steps(svi, 10), *(float(p.detach().sum()) for p in vae.parameters())])
    assert trains_whole(svi)
    assert runs[1] == pytest.approx(runs[0], rel=1e-9)


def test_wrong_update_is_detected(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """An update that is too large by a thousandth is not used."""
    right = update_graph.step_sizes

    def wrong(*arguments: Any) -> tuple[Tensor, Tensor]:
        size, root = right(*arguments)
        return 1.001 * size, root

    start = small_vae()
    expected = take_steps(driver(copy.deepcopy(start), "recorded"), 5)
    pyro.clear_param_store()
    monkeypatch.setattr(update_graph, "step_sizes", wrong)
    with caplog.at_level(logging.WARNING):
        assert take_steps(driver(start), 5) == pytest.approx(expected, rel=1e-12)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "does not update the parameters" in line
