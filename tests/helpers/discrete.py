"""A mixture with its class as a site, and the same mixture in closed form."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn


def no_latents(x: Tensor) -> None:
    """Empty guide."""


class Mixture(nn.Module):
    """A VAE with a mixture as its likelihood, with an explicit class or in closed form."""

    def __init__(self, explicit: bool) -> None:
        super().__init__()
        self.explicit = explicit
        self.enc, self.dec = nn.Linear(6, 4), nn.Linear(2, 6)
        self.shift, self.shares = nn.Parameter(torch.tensor([-2.0, 0.0, 2.0])), nn.Parameter(torch.zeros(3))

    def model(self, x: Tensor) -> None:
        pyro.module("mixture", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            loc = self.dec(z)
            if self.explicit:
                c = pyro.sample("c", dist.Categorical(logits=self.shares), infer={"enumerate": "parallel"})
                pyro.sample("x", dist.Normal(loc + self.shift[c].unsqueeze(-1), 1.0).to_event(1), obs=x)
            else:
                parts = dist.Normal(loc.unsqueeze(-2) + self.shift[:, None], 1.0).to_event(1)
                weights = dist.Categorical(logits=self.shares.expand(*loc.shape[:-1], 3))
                pyro.sample("x", dist.MixtureSameFamily(weights, parts), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("mixture", self)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.enc(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def pair() -> tuple[Mixture, Mixture]:
    explicit, closed = Mixture(explicit=True), Mixture(explicit=False)
    closed.load_state_dict(explicit.state_dict())
    return explicit, closed
