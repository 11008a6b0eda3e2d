"""Adamax in our driver: the same steps as torch's implementation and as the paper's."""

from __future__ import annotations

import copy
import math
from typing import Any

import pyro
import pytest
import torch
from helpers.fits import BATCHES, Fixed, Multiplied
from helpers.programs import small_vae
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from pyro_vae.config import components
from pyro_vae.errors import NonFiniteError
from pyro_vae.infer import ELBO, SVI, Fit, Optim, schedules
from pyro_vae.model import VAE

STEPS, RATE = 12, 0.02


def adamax(vae: VAE, graph: str | None) -> SVI:
    constructor, options = components.OPTIMIZERS["adamax"]
    optim = Optim(constructor, {"lr": RATE, **options}, schedules.per_step(schedules.cosine, STEPS))
    return SVI(vae.model, vae.guide, optim, ELBO(), execution=graph)


def rate(step: int) -> float:
    return RATE * schedules.per_step(schedules.cosine, STEPS)(step)


def gradients(vae: VAE, x: Tensor) -> list[Tensor]:
    loss = -ELBO().bounds(vae.model, vae.guide, x)[0].sum()
    return list(torch.autograd.grad(loss, list(vae.parameters())))


@pytest.mark.parametrize("graph", [None, "recorded"])
def test_adamax_steps_match_torch_and_the_paper(graph: str | None) -> None:
    """Kingma, Ba (2015), section 7.1: m averages g, u is the maximum of beta_2 u and |g|, and the step is m / u."""
    ours = small_vae()
    stock, paper = copy.deepcopy(ours), copy.deepcopy(ours)
    batches = [Fixed().valid.roll(number, 0)[:8] for number in range(STEPS)]
    pyro.set_rng_seed(3)
    svi = adamax(ours, graph)
    for x in batches:
        svi.step(x)

    pyro.clear_param_store()
    pyro.set_rng_seed(3)
    optim = torch.optim.Adamax(stock.parameters(), lr=RATE)
    for step, x in enumerate(batches):
        optim.param_groups[0]["lr"] = rate(step)
        for p, g in zip(stock.parameters(), gradients(stock, x), strict=True):
            p.grad = g
        optim.step()

    pyro.clear_param_store()
    pyro.set_rng_seed(3)
    m, u = ([torch.zeros_like(p) for p in paper.parameters()] for _ in range(2))
    for step, x in enumerate(batches):
        for n, (p, g) in enumerate(zip(paper.parameters(), gradients(paper, x), strict=True)):
            m[n] = 0.9 * m[n] + 0.1 * g
            u[n] = torch.maximum(0.999 * u[n], g.abs() + 1e-8)
            p.data -= rate(step) / (1 - 0.9 ** (step + 1)) * m[n] / u[n]

    for p, q, r in zip(ours.parameters(), stock.parameters(), paper.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(p, r, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("graph", [None, "recorded"])
def test_nonfinite_step_changes_neither_weights_nor_moments(graph: str | None) -> None:
    fit = Fit(adamax(small_vae(), graph), Multiplied(), 3)
    next(iter(fit))
    before = copy.deepcopy(fit.svi.state_dict())
    fit.batches.factor = torch.tensor(math.nan)
    with pytest.raises(NonFiniteError, match=f"at step {BATCHES} "):
        next(iter(fit))
    torch.testing.assert_close(fit.svi.state_dict(), before, rtol=0, atol=0)


def test_learning_rate_on_cuda_is_float32() -> None:
    """Fused kernels accept no other dtype, whatever the default. Fake CUDA tensors, which need no device, test it."""
    given: dict[str, Any] = {}

    class Unchecked(torch.optim.Adam):
        def __init__(self, params: Any, **options: Any) -> None:
            given.update(options)
            super().__init__(params)

    with FakeTensorMode():
        weight = pyro.param("weight", torch.zeros(3, device="cuda"))
        Optim(Unchecked, {"lr": 1e-3, "fused": True}).add_params([weight])
    assert weight.dtype == torch.get_default_dtype()
    assert (given["lr"].dtype, given["lr"].device.type, given["capturable"]) == (torch.float32, "cuda", True)
