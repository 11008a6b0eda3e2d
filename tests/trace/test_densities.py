"""Log-densities of a program's sites: which sites count, scales and masks, and rejected sites."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.oracles import LinearGaussian
from pyro import poutine
from torch import Tensor

from pyro_vae.evaluate import log_weights
from pyro_vae.infer import ELBO
from pyro_vae.trace import log_density, trace_particles


@dataclass
class Unhashable:
    program: LinearGaussian

    def model(self, x: Tensor) -> None:
        self.program.model(x)


def test_model_may_be_a_method_partial_or_lambda() -> None:
    program = LinearGaussian(2)
    x = program.simulate(3)
    expected = log_weights(program.model, program.guide, x, 5, seed=0)
    for model in (Unhashable(program).model, partial(LinearGaussian.model, program), lambda x: program.model(x)):
        assert torch.equal(log_weights(model, program.guide, x, 5, seed=0), expected)


def test_site_observed_by_the_guide_is_a_loss_and_not_a_density() -> None:
    """As in stock Pyro, it is subtracted from the objective; log weights contain only sampled sites."""
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


def test_program_without_latents_is_scored_once_and_broadcast() -> None:
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
    """`poutine.scale` only affects training and is ignored; `poutine.mask` is part of the model."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]), poutine.scale(scale=0.1), poutine.mask(mask=x > 0):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    x = torch.tensor([-1.0, 2.0])
    expected = torch.stack([torch.zeros(()), dist.Normal(0.0, 1.0).log_prob(x[1])]).double()
    torch.testing.assert_close(log_density(model, x, {})["x"][0], expected)


def test_deterministic_site_outside_the_plate_is_not_a_density() -> None:
    def model(x: Tensor) -> None:
        pyro.deterministic("half", torch.tensor(0.5))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("x", dist.Bernoulli(0.5), obs=x)

    assert log_density(model, torch.zeros(3), {})["x"].sum().item() == pytest.approx(-3 * math.log(2))


@pytest.mark.parametrize(
    ("plates", "message"),
    [([], "found none"), ([("pixels", 2, -2)], "'pixels' of size 2"), ([("data", 2, -1)], "size 4")],
)
def test_sites_outside_the_data_plate_are_rejected(plates: list[tuple[str, int, int]], message: str) -> None:
    def model(x: Tensor) -> None:
        with ExitStack() as stack:
            for name, size, dim in plates:
                stack.enter_context(pyro.plate(name, size, dim=dim))
            pyro.sample("global", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="Site 'global' must be inside one data plate") as caught:
        trace_particles(model, torch.zeros(4)).log_probs()
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
