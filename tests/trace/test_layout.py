"""Programs are run with particles, with rows or one particle at a time, with the same numbers for any batching."""

from __future__ import annotations

import logging
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.oracles import BernoulliDecoder, LinearGaussian
from helpers.programs import ConvProgram
from pyro import poutine
from torch import Tensor, nn

from pyro_vae.evaluate import log_weights
from pyro_vae.trace import draw, log_density


class MixingProgram(ConvProgram):
    """A decoder that runs under a particle plate, but then normalizes over the wrong dimension."""

    def model(self, x: Tensor) -> None:
        pyro.module("conv", self)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            logits = torch.cat([z.softmax(1)] * 8, -1)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x.flatten(1))


def one_by_one(program: nn.Module, x: Tensor, z: Tensor) -> Tensor:
    """Return log p(x, z) of each particle and image by itself, with stock Pyro."""
    total = torch.empty(z.shape[:2], dtype=torch.float64)
    for k in range(z.shape[0]):
        for b in range(z.shape[1]):
            conditioned = poutine.condition(program.model, data={"z": z[k, b : b + 1]})
            total[k, b] = poutine.trace(conditioned).get_trace(x[b : b + 1]).log_prob_sum()
    return total.detach()


@pytest.mark.parametrize("program", [ConvProgram, MixingProgram])
def test_programs_without_particle_support_use_the_row_layout(
    program: type[ConvProgram], caplog: pytest.LogCaptureFixture
) -> None:
    vae = program()
    x = torch.bernoulli(torch.full((5, 4, 4), 0.5))
    with caplog.at_level(logging.INFO, "pyro_vae"), torch.no_grad():
        values, log_q = draw(vae.guide, x, 7)
        for _ in range(2):
            log_p = log_density(vae.model, x, values)
    torch.testing.assert_close(sum(log_p.values()), one_by_one(vae, x, values["z"]), rtol=1e-6, atol=1e-6)
    expected = dist.Normal(vae.encoder(x.unsqueeze(1)).flatten(1), 0.5).to_event(1).log_prob(values["z"])
    torch.testing.assert_close(log_q["z"], expected.double())
    assert [r.message for r in caplog.records if ".model" in r.message][1:] == []  # logged once


class Normalising(ConvProgram):
    """A program that mixes particles, but not at its initialization: the decoder's last layer is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(2, 16)
        nn.init.zeros_(self.out.weight)

    def model(self, x: Tensor) -> None:
        pyro.module("conv", self)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            logits = self.out(nn.functional.normalize(z))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x.flatten(1))


class Coincidence(ConvProgram):
    """BatchNorm1d whose width equals the number of images of one of the probes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        self.out = nn.Linear(width, 16)
        self.width = width

    def model(self, x: Tensor) -> None:
        pyro.module("conv", self)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(self.width), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.out(self.norm(z))).to_event(1), obs=x.flatten(1))

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(torch.zeros(self.width), 1.0).to_event(1))


@pytest.mark.parametrize("width", [3, 5, 7])
def test_probe_is_not_misled_by_a_matching_width(width: int) -> None:
    program = Coincidence(width).eval()
    x, z = torch.ones(10, 4, 4), torch.randn(3, 10, width)
    torch.testing.assert_close(sum(log_density(program.model, x, {"z": z}).values()), one_by_one(program, x, z))


def test_probe_is_not_misled_by_initial_weights() -> None:
    program = Normalising()
    x, z = torch.ones(5, 4, 4), torch.randn(4, 5, 2)
    before = [p.clone() for p in program.parameters()]
    log_density(program.model, x, {"z": z})
    assert all(torch.equal(p, old) for p, old in zip(program.parameters(), before, strict=True))
    nn.init.normal_(program.out.weight)
    torch.testing.assert_close(sum(log_density(program.model, x, {"z": z}).values()), one_by_one(program, x, z))


def test_replaced_module_is_probed_again() -> None:
    x, z = torch.ones(5, 4, 4), torch.randn(4, 5, 2)
    plain = Coincidence(2).eval()
    plain.norm = nn.Identity()
    log_density(plain.model, x, {"z": z})
    plain.norm = nn.Softmax(dim=1)
    torch.testing.assert_close(sum(log_density(plain.model, x, {"z": z}).values()), one_by_one(plain, x, z))


def test_per_image_parameters_use_the_particle_layout() -> None:
    """A guide with a location for each of its own images cannot run on repeated ones."""

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", lambda: torch.arange(3.0 * len(x)).view(-1, 3))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(loc, 0.1).to_event(1))

    x = torch.zeros(6, 7)
    values, log_q = draw(guide, x, 50)
    assert pyro.get_param_store()["loc"].shape == (6, 3)
    expected = dist.Normal(pyro.param("loc"), 0.1).to_event(1).log_prob(values["z"])
    torch.testing.assert_close(log_q["z"], expected.double())


def test_both_layouts_draw_and_score_alike() -> None:
    program = LinearGaussian(3)
    x = program.simulate(4)
    by_particles = log_weights(program.model, program.guide, x, 50, seed=1)

    class Rows(LinearGaussian):
        def model(self, x: Tensor) -> None:
            with pyro.plate("data", x.shape[0]):
                z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
                loc = z.view(x.shape[0], 3) @ self.weight.T + self.bias
                pyro.sample("x", dist.Normal(loc, math.sqrt(self.noise)).to_event(1), obs=x)

        def guide(self, x: Tensor) -> None:
            super().guide(x.unflatten(0, (x.shape[0], -1)).squeeze(1))

    rows = Rows(3)
    torch.testing.assert_close(log_weights(rows.model, rows.guide, x, 50, seed=1), by_particles)


def test_log_density_does_not_depend_on_the_batching() -> None:
    program = BernoulliDecoder(2)
    x = torch.bernoulli(torch.full((9, 6), 0.5))
    z = torch.randn(11, 9, 2)
    together = sum(log_density(program.model, x, {"z": z}).values())
    for size in (1, 2, 4, 9):
        parts = zip(x.split(size), z.split(size, dim=1), strict=True)
        apart = torch.cat([sum(log_density(program.model, xb, {"z": zb}).values()) for xb, zb in parts], 1)
        torch.testing.assert_close(apart, together, rtol=1e-12, atol=1e-12)
