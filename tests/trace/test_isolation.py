"""Evaluation is read-only: it runs in evaluation mode, with trained values and a separate seed."""

from __future__ import annotations

import math
import random
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from helpers.bits import assert_same
from helpers.oracles import LinearGaussian
from pyro import poutine
from torch import Tensor, nn

from pyro_vae.evaluate import log_weights
from pyro_vae.infer.streams import rng_state
from pyro_vae.trace import log_density, read_only


class Untidy(nn.Module):
    """A program with dropout, batch normalization, a trained `pyro.param`, and noise from other random streams."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
        self.frozen = nn.Dropout(0.1).eval()

    def model(self, x: Tensor) -> None:
        bias = pyro.param("bias", torch.zeros(6))
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z.sum(-1, keepdim=True) + bias).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(self.net(x), 1.0).to_event(1))
        assert random.random() + np.random.random() > 0


def test_evaluation_is_read_only() -> None:
    program = Untidy()
    x = torch.bernoulli(torch.full((5, 6), 0.5))
    with torch.no_grad():
        pyro.param("bias", torch.zeros(6)).fill_(1.0)
    store = pyro.get_param_store().get_state()
    modes = {name: part.training for name, part in program.named_modules()}
    buffers = {name: value.clone() for name, value in program.named_buffers()}
    before = rng_state()

    first = log_weights(program.model, program.guide, x, 200, seed=3)
    second = log_weights(program.model, program.guide, x, 200, seed=3)

    torch.testing.assert_close(first, second, rtol=0, atol=0)  # no dropout, no batch statistics
    assert_same(rng_state(), before)
    assert modes == {name: part.training for name, part in program.named_modules()}
    assert all(torch.equal(value, buffers[name]) for name, value in program.named_buffers())
    after = pyro.get_param_store().get_state()
    assert {k: id(v) for k, v in after["params"].items()} == {k: id(v) for k, v in store["params"].items()}


def test_functions_are_run_in_evaluation_mode() -> None:
    """Dropout inside a closure, a partial and a wrapped method is found and disabled."""
    program = Untidy()
    x = torch.bernoulli(torch.full((5, 6), 0.5))

    def inner(net: nn.Module, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(net(x), 1.0).to_event(1))

    guides = [
        program.guide,
        partial(inner, program.net),
        lambda x: inner(program.net, x),
        poutine.scale(program.guide, 2),
    ]
    buffers = {name: value.clone() for name, value in program.named_buffers()}
    with torch.random.fork_rng():
        found = [log_weights(program.model, guide, x, 20, seed=3) for guide in guides]
    for weights in found[1:]:
        assert torch.equal(weights, found[0])
    assert all(torch.equal(value, buffers[name]) for name, value in program.named_buffers())


def test_model_and_guide_of_two_modules_are_both_run_in_evaluation_mode() -> None:
    first, second = Untidy(), Untidy()
    with read_only(first.model, second.guide, x=torch.zeros(2, 6)):
        assert not any(part.training for program in (first, second) for part in program.modules())
    assert first.net.training
    assert second.net.training


def test_pyro_param_has_its_trained_value() -> None:
    program = Untidy().eval()
    x = torch.ones(2, 6)
    z = torch.zeros(1, 2, 2)
    with torch.no_grad():
        pyro.param("bias", torch.zeros(6)).fill_(3.0)
    with read_only(program.model, x=x):
        found = log_density(program.model, x, {"z": z})["x"]
    torch.testing.assert_close(found, torch.full((1, 2), -6 * math.log1p(math.exp(-3.0)), dtype=torch.float64))


def test_seed_determines_the_draws() -> None:
    program = LinearGaussian(2, variance_ratio=2.0)
    x = program.simulate(2)
    weights = [log_weights(program.model, program.guide, x, 5, seed=seed) for seed in (0, 0, 1, None, None)]
    assert torch.equal(weights[0], weights[1])
    for other in (weights[2], weights[3]):
        assert not torch.equal(weights[0], other)
    assert not torch.equal(weights[3], weights[4])
