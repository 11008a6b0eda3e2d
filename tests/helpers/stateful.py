"""A fit in which every component has state."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae import data
from pyro_vae.config import Config, components, programs
from pyro_vae.infer import IWAE, SVI, Fit, Optim, schedules

IMAGES, BATCH, EPOCHS = 23, 5, 8  # five steps per epoch, the last of three images
STEPS_OF_EPOCH = 5


class Params:
    """A program of constrained `pyro.param`s."""

    def model(self, x: Tensor) -> None:
        rate = pyro.param("rate", torch.tensor(1.5), constraint=dist.constraints.positive)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Gamma(2.0, rate).expand([2]).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z.log().sum(-1)[..., None, None].expand(x.shape)).to_event(2), obs=x)

    def guide(self, x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(2))
        scale = pyro.param("scale", torch.ones(2), constraint=dist.constraints.positive)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.LogNormal(loc, scale).to_event(1))


def new_fit(
    program: str,
    graph: str | None,
    seed: int,
    device: str = "cpu",
    epochs: int = EPOCHS,
    optimizer: str = "adam",
    ema: float = 0.0,
) -> Fit:
    """Return a fit in which every component has state: schedule, early stopping, noise, binarization."""
    pyro.clear_param_store()
    generator = torch.Generator("cpu").manual_seed(1)
    pixels = torch.randint(0, 256, (IMAGES, 6, 5), dtype=torch.uint8, generator=generator, device="cpu").to(device)
    images = data.Observed(data.Images("random", pixels, pixels, pixels), "dynamic")
    pyro.set_rng_seed(seed)
    if program == "params":
        built: Any = Params()
    else:
        settings = Config(prior=program, latent_dim=3, hidden_dim=8, batch_size=BATCH, device=device)
        built = programs.build(settings, images.pixels)
    constructor, options = components.OPTIMIZERS[optimizer]
    schedule = schedules.per_step(schedules.cosine, epochs * STEPS_OF_EPOCH)
    optim = Optim(constructor, {"lr": 0.01, **options}, schedule)
    svi = SVI(built.model, built.guide, optim, IWAE(2), execution=graph)
    valid = images.split("valid")[:7]
    return Fit(svi, images.batches(BATCH), epochs, valid=valid, patience=epochs, seed=3, ema=ema)
