"""A program as the text of a file."""

from __future__ import annotations

NET = """
import random
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, seed):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(64, 8), nn.Linear(4, 64)
        self.order = torch.randperm(64)
        self.drawn = [seed, self.order.tolist(), random.random(), np.random.rand()]

    def model(self, x):
        pyro.module("net", self)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            logits = self.decoder(z)[..., self.order].unflatten(-1, (8, 8))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(2), obs=x)

    def guide(self, x):
        pyro.module("net", self)
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = self.encoder(x.flatten(-2)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def factory(config, images):
    return Net(config.seed)


def other(config, images):
    return Net(config.seed)
"""
