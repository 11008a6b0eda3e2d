"""Means and draws of p(x|z), with z from the prior or the posterior, for programs with known moments."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.oracles import LinearGaussian
from pyro.distributions import constraints
from torch import Tensor

from pyro_vae.evaluate import decode_average, decode_mean, decode_sample, sample_posterior, sample_prior

NUM = 20_000


def test_decoded_prior_means_have_the_covariance_of_the_weights() -> None:
    """Covariance W W'; means at 4 s.e., false alarms 4e-4 in all."""
    program = LinearGaussian(2)
    like = torch.zeros(NUM, 7)
    found = decode_mean(program.model, like, sample_prior(program.model, like, seed=0))
    covariance = program.weight @ program.weight.T
    assert ((found.mean(0) - program.bias).abs() < 4 * (covariance.diagonal() / NUM).sqrt()).all()
    torch.testing.assert_close(found.T.cov(), covariance, rtol=0.1, atol=0.1)


def test_decode_average_equals_the_mean_up_to_noise() -> None:
    """100 draws leave a hundredth of a pixel's variance; at 4.5 s.e.: 14 comparisons, false alarms 1e-4."""
    program = LinearGaussian(2)
    like = torch.zeros(NUM // 10, 7)
    z = sample_prior(program.model, like, seed=0)
    averages = decode_average(program.model, like, z, seed=1)
    assert averages is not None
    noise, variance = averages - decode_mean(program.model, like, z), program.noise / 100
    assert (noise.mean(0).abs() < 4.5 * math.sqrt(variance / len(like))).all()
    assert ((noise.var(0) - variance).abs() < 4.5 * variance * math.sqrt(2 / len(like))).all()


def test_draws_add_pixel_noise_to_the_means() -> None:
    """Mean and variance of draws minus means at 4.5 s.e.: 14 comparisons, false alarms 1e-4 in all."""
    program = LinearGaussian(2)
    like = torch.zeros(NUM, 7)
    z = sample_prior(program.model, like, seed=0)
    noise = decode_sample(program.model, like, z, seed=1) - decode_mean(program.model, like, z)
    assert (noise.mean(0).abs() < 4.5 * math.sqrt(program.noise / NUM)).all()
    assert ((noise.var(0) - program.noise).abs() < 4.5 * program.noise * math.sqrt(2 / NUM)).all()


def test_reconstructions_follow_the_posterior() -> None:
    program = LinearGaussian(2)
    x = program.simulate(1).expand(NUM, 7)
    found = decode_mean(program.model, x, sample_posterior(program.guide, x, seed=0))
    expected = program.posterior_mean(x[:1]) @ program.weight.T + program.bias
    spread = (program.weight @ program.covariance @ program.weight.T).diagonal()
    assert ((found.mean(0) - expected).abs() < 4 * (spread / NUM).sqrt()).all()  # false alarms 4e-4 in all


def test_seeded_draws_repeat_and_leave_the_generator_unchanged() -> None:
    program, like = LinearGaussian(2), torch.zeros(5, 7)
    before = torch.get_rng_state()
    first, second = (decode_sample(program.model, like, {}, seed=0) for _ in range(2))
    assert torch.equal(first, second)
    first, second = (sample_prior(program.model, like, seed=0)["z"] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())


class Tossed(dist.TorchDistribution):
    """Three coins, as a distribution without a `mean`."""

    support = constraints.independent(constraints.boolean, 1)

    def __init__(self, batch_shape: Sequence[int] = ()) -> None:
        super().__init__(torch.Size(batch_shape), torch.Size([3]), validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> Tossed:
        return Tossed(batch_shape)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return torch.bernoulli(torch.full(self._extended_shape(torch.Size(sample_shape)), 0.5))

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.full(value.shape[:-1], -3 * math.log(2))


def tossed(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("x", Tossed(), obs=x)


def improper(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.ImproperUniform(constraints.real_vector, (), (3,)))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def test_missing_mean_or_prior_is_none() -> None:
    like = torch.zeros(200, 3)
    assert sample_prior(tossed, like) == {}
    assert decode_mean(tossed, like, {}) is None
    assert decode_sample(tossed, like, {}, seed=0).mean() == pytest.approx(0.5, abs=0.1)  # 5 s.e.
    assert sample_prior(improper, like) is None
    z = torch.randn(1, 200, 3)
    torch.testing.assert_close(decode_mean(improper, like, {"z": z}), z[0])


def test_program_that_observes_other_values_is_rejected() -> None:
    program = LinearGaussian(2)
    with pytest.raises(ValueError, match="observes no site with the elements of x"):
        decode_mean(lambda x: program.model(2 * x), torch.zeros(4, 7), {"z": torch.zeros(1, 4, 2)})


def test_decoded_images_have_the_shape_of_x() -> None:
    program, z = LinearGaussian(2), torch.randn(1, 4, 2)

    def transposed(x: Tensor) -> None:
        program.model(x.mT.flatten(1))

    flat = decode_mean(program.model, torch.zeros(4, 7), {"z": z})
    found = decode_mean(lambda x: program.model(x.flatten(1)), torch.zeros(4, 7, 1), {"z": z})
    torch.testing.assert_close(found, flat.reshape(4, 7, 1))
    torch.testing.assert_close(decode_mean(transposed, torch.zeros(4, 1, 7), {"z": z}), flat.reshape(4, 1, 7))
