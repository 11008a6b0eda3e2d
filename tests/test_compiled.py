"""The compiled step: the numbers of the eager one on the same noise, whatever the program is made of."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from test_objectives import images, small_vae
from torch import Tensor, nn

from pyro_vae.infer import ELBO, IWAE, STL, SVI, BetaELBO, NonFiniteError, Objective, Optim
from pyro_vae.model import VAE
from pyro_vae.trace import graph

ADAM = {"lr": 0.01, "fused": True}


@pytest.fixture
def recorded_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The record itself in the place of what the compiler makes of it: all that is ours, in a tenth of the time."""
    monkeypatch.setattr(graph, "compiled", lambda record, inputs: record)


def driver(vae: VAE, objective: Objective | None = None, *, compiled: bool) -> SVI:
    return SVI(vae.model, vae.guide, Optim(torch.optim.Adam, dict(ADAM)), objective or ELBO(), compiled=compiled)


def losses(svi: SVI, number: int, size: int = 5) -> list[float]:
    pyro.set_rng_seed(7)
    batches = [images(size) for _ in range(number)]
    return [float(svi.step(x)) for x in batches]


def test_two_hundred_compiled_steps_track_the_eager_ones() -> None:
    """In float64 rounding differs in the sixteenth digit; 200 steps of Adam make of it less than 1e-9."""
    eager, vae = small_vae(), small_vae()
    vae.load_state_dict(eager.state_dict())
    expected = losses(driver(eager, IWAE(3), compiled=False), 200)
    pyro.clear_param_store()
    svi = driver(vae, IWAE(3), compiled=True)
    found = losses(svi, 200)
    assert svi.compiled is not None and svi.compiled._graph is not None and not svi.compiled._refused  # noqa: PT018
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-9, atol=0)
    for p, reference in zip(vae.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(p, reference, rtol=0, atol=1e-8)
