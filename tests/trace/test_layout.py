"""Reading programs: both layouts, any sites, and no mark left."""

from __future__ import annotations

import logging
import math
import random
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.bits import assert_same
from helpers.oracles import BernoulliDecoder, LinearGaussian
from helpers.programs import ConvProgram
from pyro import poutine
from torch import Tensor, nn

from pyro_vae.evaluate import log_weights
from pyro_vae.infer import ELBO
from pyro_vae.infer.streams import streams
from pyro_vae.trace import draw, log_density, reading, run


class MixingProgram(ConvProgram):
    """A decoder that runs under a particle plate and then normalises over the wrong dimension."""

    def model(self, x: Tensor) -> None:
        pyro.module("conv", self)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            logits = torch.cat([z.softmax(1)] * 8, -1)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x.flatten(1))


def one_by_one(program: nn.Module, x: Tensor, z: Tensor) -> Tensor:
    """log p(x, z) of every particle and image on its own, through stock Pyro."""
    total = torch.empty(z.shape[:2], dtype=torch.float64)
    for k in range(z.shape[0]):
        for b in range(z.shape[1]):
            conditioned = poutine.condition(program.model, data={"z": z[k, b : b + 1]})
            total[k, b] = poutine.trace(conditioned).get_trace(x[b : b + 1]).log_prob_sum()
    return total.detach()


@pytest.mark.parametrize("program", [ConvProgram, MixingProgram])
def test_programs_that_take_no_particles_are_read_as_rows(
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
    """Mixes particles, but not at its start: the decoder's last layer is zero."""

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
    """BatchNorm1d of a width that is the number of images of one of the probes."""

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
def test_the_probe_is_not_fooled_by_a_width(width: int) -> None:
    program = Coincidence(width).eval()
    x, z = torch.ones(10, 4, 4), torch.randn(3, 10, width)
    torch.testing.assert_close(sum(log_density(program.model, x, {"z": z}).values()), one_by_one(program, x, z))


def test_the_probe_is_not_fooled_by_initial_weights() -> None:
    program = Normalising()
    x, z = torch.ones(5, 4, 4), torch.randn(4, 5, 2)
    before = [p.clone() for p in program.parameters()]
    log_density(program.model, x, {"z": z})
    assert all(torch.equal(p, old) for p, old in zip(program.parameters(), before, strict=True))
    nn.init.normal_(program.out.weight)
    torch.testing.assert_close(sum(log_density(program.model, x, {"z": z}).values()), one_by_one(program, x, z))


def test_another_part_is_another_program() -> None:
    x, z = torch.ones(5, 4, 4), torch.randn(4, 5, 2)
    plain = Coincidence(2).eval()
    plain.norm = nn.Identity()
    log_density(plain.model, x, {"z": z})
    plain.norm = nn.Softmax(dim=1)
    torch.testing.assert_close(sum(log_density(plain.model, x, {"z": z}).values()), one_by_one(plain, x, z))


def test_parameters_of_each_image_are_read_as_particles() -> None:
    """A guide that holds a location for each of its own images cannot be run on repeated ones."""

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", lambda: torch.arange(3.0 * len(x)).view(-1, 3))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(loc, 0.1).to_event(1))

    x = torch.zeros(6, 7)
    values, log_q = draw(guide, x, 50)
    assert pyro.get_param_store()["loc"].shape == (6, 3)
    expected = dist.Normal(pyro.param("loc"), 0.1).to_event(1).log_prob(values["z"])
    torch.testing.assert_close(log_q["z"], expected.double())


@dataclass
class Unhashable:
    program: LinearGaussian

    def model(self, x: Tensor) -> None:
        self.program.model(x)


def test_programs_of_any_owner_are_read() -> None:
    program = LinearGaussian(2)
    x = program.simulate(3)
    expected = log_weights(program.model, program.guide, x, 5, seed=0)
    for model in (Unhashable(program).model, partial(LinearGaussian.model, program), lambda x: program.model(x)):
        assert torch.equal(log_weights(model, program.guide, x, 5, seed=0), expected)


def test_what_a_guide_observes_is_a_loss_and_no_density() -> None:
    """As in stock Pyro it is subtracted from the objective; a log weight is of what has been drawn."""
    program, x = LinearGaussian(2), LinearGaussian(2).simulate(3)

    def guide(x: Tensor) -> None:
        program.guide(x)
        with pyro.plate("seen", x.shape[0]):
            pyro.sample("coin", dist.Bernoulli(0.25), obs=torch.zeros(len(x)))

    expected = log_weights(program.model, program.guide, x, 5, seed=0)
    torch.testing.assert_close(log_weights(program.model, guide, x, 5, seed=0), expected)
    pyro.set_rng_seed(1)
    plain = ELBO().loss(program.model, program.guide, x)
    pyro.set_rng_seed(1)
    torch.testing.assert_close(ELBO().loss(program.model, guide, x), plain + 3 * math.log(0.75))


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


def test_log_density_does_not_depend_on_how_images_are_batched() -> None:
    program = BernoulliDecoder(2)
    x = torch.bernoulli(torch.full((9, 6), 0.5))
    z = torch.randn(11, 9, 2)
    together = sum(log_density(program.model, x, {"z": z}).values())
    for size in (1, 2, 4, 9):
        parts = zip(x.split(size), z.split(size, dim=1), strict=True)
        apart = torch.cat([sum(log_density(program.model, xb, {"z": zb}).values()) for xb, zb in parts], 1)
        torch.testing.assert_close(apart, together, rtol=1e-12, atol=1e-12)


def test_a_program_without_latents_is_scored_once_and_broadcast() -> None:
    logits = torch.tensor([0.3, -1.0, 2.0])

    def model(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pass

    x = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    expected = dist.Bernoulli(logits=logits).log_prob(x).sum(1).double()
    torch.testing.assert_close(log_weights(model, guide, x, 130), expected.expand(130, 2))


def test_scales_and_masks() -> None:
    """`poutine.scale` is a matter of training and left out; `poutine.mask` belongs to the model."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]), poutine.scale(scale=0.1), poutine.mask(mask=x > 0):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    x = torch.tensor([-1.0, 2.0])
    expected = torch.stack([torch.zeros(()), dist.Normal(0.0, 1.0).log_prob(x[1])]).double()
    torch.testing.assert_close(log_density(model, x, {})["x"][0], expected)


def test_a_deterministic_site_outside_the_plate_is_no_density() -> None:
    def model(x: Tensor) -> None:
        pyro.deterministic("half", torch.tensor(0.5))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("x", dist.Bernoulli(0.5), obs=x)

    assert log_density(model, torch.zeros(3), {})["x"].sum().item() == pytest.approx(-3 * math.log(2))


@pytest.mark.parametrize(
    ("plates", "message"),
    [([], "found none"), ([("pixels", 2, -2)], "'pixels' of size 2"), ([("data", 2, -1)], "size 4")],
)
def test_sites_outside_one_data_plate_are_refused(plates: list[tuple[str, int, int]], message: str) -> None:
    def model(x: Tensor) -> None:
        with ExitStack() as stack:
            for name, size, dim in plates:
                stack.enter_context(pyro.plate(name, size, dim=dim))
            pyro.sample("global", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="Site 'global' must stand in one data plate") as caught:
        run(model, torch.zeros(4)).log_probs()
    assert message in str(caught.value)


def test_latent_sites_of_model_and_guide_must_agree() -> None:
    program = LinearGaussian(2)

    def empty(x: Tensor) -> None:
        pass

    def extra(x: Tensor) -> None:
        program.guide(x)
        with pyro.plate("more", x.shape[0]):
            pyro.sample("u", dist.Normal(0.0, 1.0))

    x = program.simulate(3)
    with pytest.raises(ValueError, match="'z' of the program has no value"):
        log_weights(program.model, empty, x, 3)
    with pytest.raises(ValueError, match="no latent site 'u'"):
        log_weights(program.model, extra, x, 3)


class Untidy(nn.Module):
    """Dropout, batch normalisation, a `pyro.param` that has been trained away from its start, other streams' noise."""

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


def test_reading_leaves_no_mark() -> None:
    program = Untidy()
    x = torch.bernoulli(torch.full((5, 6), 0.5))
    with torch.no_grad():
        pyro.param("bias", torch.zeros(6)).fill_(1.0)
    store = pyro.get_param_store().get_state()
    modes = {name: part.training for name, part in program.named_modules()}
    buffers = {name: value.clone() for name, value in program.named_buffers()}
    before = streams()

    first = log_weights(program.model, program.guide, x, 200, seed=3)
    second = log_weights(program.model, program.guide, x, 200, seed=3)

    torch.testing.assert_close(first, second, rtol=0, atol=0)  # no dropout, no batch statistics
    assert_same(streams(), before)
    assert modes == {name: part.training for name, part in program.named_modules()}
    assert all(torch.equal(value, buffers[name]) for name, value in program.named_buffers())
    after = pyro.get_param_store().get_state()
    assert {k: id(v) for k, v in after["params"].items()} == {k: id(v) for k, v in store["params"].items()}


def test_functions_are_read_in_evaluation_mode() -> None:
    """Dropout behind a closure, a partial and a wrapped method is found and switched off."""
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


def test_a_model_and_a_guide_of_two_modules_are_both_read_in_evaluation_mode() -> None:
    first, second = Untidy(), Untidy()
    with reading(first.model, second.guide, x=torch.zeros(2, 6)):
        assert not any(part.training for program in (first, second) for part in program.modules())
    assert first.net.training
    assert second.net.training


def test_a_pyro_param_is_read_at_its_trained_value() -> None:
    program = Untidy().eval()
    x = torch.ones(2, 6)
    z = torch.zeros(1, 2, 2)
    with torch.no_grad():
        pyro.param("bias", torch.zeros(6)).fill_(3.0)
    with reading(program.model, x=x):
        found = log_density(program.model, x, {"z": z})["x"]
    torch.testing.assert_close(found, torch.full((1, 2), -6 * math.log1p(math.exp(-3.0)), dtype=torch.float64))


def test_seeds() -> None:
    program = LinearGaussian(2, variance_ratio=2.0)
    x = program.simulate(2)
    weights = [log_weights(program.model, program.guide, x, 5, seed=seed) for seed in (0, 0, 1, None, None)]
    assert torch.equal(weights[0], weights[1])
    for other in (weights[2], weights[3]):
        assert not torch.equal(weights[0], other)
    assert not torch.equal(weights[3], weights[4])
