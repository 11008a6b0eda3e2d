"""Small programs on which the tests of third-party programs are based."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae import Optim
from pyro_vae.evaluate import (
    AISConfig,
)

SHORT = AISConfig(8, 50, 2)


def adam() -> Optim:
    return Optim(torch.optim.Adam, {"lr": 0.01})


def binary(*shape: int) -> Tensor:
    return torch.bernoulli(torch.full(shape, 0.5))


class Small(nn.Module):
    """A VAE of 6 binary pixels and 2 latents, parts of which the tests replace."""

    def __init__(self, inputs: int = 6, codes: int = 2) -> None:
        super().__init__()
        self.enc, self.dec = nn.Linear(inputs, 4), nn.Linear(codes, 6)

    def logits(self, z: Tensor) -> Tensor:
        return self.dec(z)

    def model(self, x: Tensor) -> None:
        pyro.module("small", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.logits(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("small", self)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.enc(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))
