"""Steps of our driver, and whether they were recorded."""

from __future__ import annotations

import pyro
import torch
from helpers.programs import images

from pyro_vae.infer import ELBO, SVI, Objective, Optim
from pyro_vae.model import VAE

ADAM = {"lr": 0.01, "fused": True}


def driver(vae: VAE, objective: Objective | None = None, graph: str | None = "recorded") -> SVI:
    return SVI(vae.model, vae.guide, Optim(torch.optim.Adam, dict(ADAM)), objective or ELBO(), execution=graph)


def take_steps(svi: SVI, number: int, size: int = 5) -> list[float]:
    pyro.set_rng_seed(7)
    batches = [images(size) for _ in range(number)]
    return [float(svi.step(x)) for x in batches]


def is_recorded(svi: SVI) -> bool:
    assert svi.recorded is not None
    return svi.recorded._graph is not None and len(svi.recorded._graph._records) > 0
