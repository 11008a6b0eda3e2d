"""Third-party programs: sites in any plates, masked, auxiliary or split."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.any_program import SHORT, Small, binary
from helpers.oracles import BernoulliDecoder, LinearGaussian
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from pyro_vae import ELBO, log_weights, score
from pyro_vae.evaluate import ais, bdmc, log_weight_terms, posterior_means
from pyro_vae.trace import draw, log_density, simulate


def test_images_hidden_by_obs_mask_are_drawn_from_the_model() -> None:
    """The weight of a hidden image is log p(z) - log q(z); the other weights are unchanged."""
    program, seen = Small(), torch.tensor([True, False, True, False])

    def model(how: str) -> Any:
        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
                fn = dist.Bernoulli(logits=program.dec(z)).to_event(1)
                if how == "mask":
                    pyro.sample("x", fn.mask(seen), obs=x)
                else:
                    pyro.sample("x", fn, obs=x, obs_mask=seen)

        return model

    x = binary(4, 6)
    expected = log_weights(model("mask"), program.guide, x, 20, seed=0)
    torch.testing.assert_close(log_weights(model("obs_mask"), program.guide, x, 20, seed=0), expected)


def test_auxiliary_site_carries_the_density_of_its_parts() -> None:
    """The exact posterior of (a, b) given x ~ N(a + b, 1), drawn jointly: every weight is log N(x; 0, 3)."""
    covariance = torch.tensor([[2.0, -1.0], [-1.0, 2.0]]) / 3

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a, b = (pyro.sample(name, dist.Normal(0.0, 1.0)) for name in "ab")
            pyro.sample("x", dist.Normal(a + b, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = (x / 3).unsqueeze(-1).expand(-1, 2)
            both = pyro.sample("both", dist.MultivariateNormal(loc, covariance), infer={"is_auxiliary": True})
            for number, name in enumerate("ab"):
                pyro.sample(name, dist.Delta(both[..., number]))

    x = torch.randn(5)
    truth = dist.Normal(0.0, math.sqrt(3)).log_prob(x)
    torch.testing.assert_close(log_weights(model, guide, x, 6, seed=0), truth.expand(6, 5))
    torch.testing.assert_close(-ELBO(3).loss(model, guide, x), truth.sum())
    with pytest.raises(ValueError, match="auxiliary site 'both'"):
        ais(model, guide, x, replace(SHORT, start="guide"))


def test_observed_pixels_may_be_split_into_several_sites() -> None:
    """A decoder observed at one site, in a plate of pixels, and in halves: equal weights and bounds."""
    program, x = BernoulliDecoder(2), binary(5, 6)

    def pixels(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            with pyro.plate("pixels", 6, dim=-2):
                pyro.sample("x", dist.Bernoulli(logits=program.net(z).transpose(-1, -2)), obs=x.T)

    def halves(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            for number, (logits, part) in enumerate(zip(program.net(z).chunk(2, -1), x.chunk(2, -1), strict=True)):
                pyro.sample(f"x{number}", dist.Bernoulli(logits=logits).to_event(1), obs=part)

    whole = log_weight_terms(program.model, program.guide, x, 40, seed=0)
    gap = bdmc(program.model, program.guide, x.expand(8, 5, 6).flatten(0, 1), SHORT, seed=0).gap
    for model in (pixels, halves):
        found = log_weight_terms(model, program.guide, x, 40, seed=0)
        torch.testing.assert_close(found.log_weights, whole.log_weights)
        images, values = simulate(model, x)
        assert set(images.unique().tolist()) <= {0.0, 1.0}
        assert values["z"].shape == (1, 5, 2)
        other = bdmc(model, program.guide, x.expand(8, 5, 6).flatten(0, 1), SHORT, seed=0).gap
        spread = math.sqrt((gap.var() + other.var()) / len(gap))
        assert abs(gap.mean() - other.mean()) < 4 * spread  # false alarms 6e-5


def test_time_plate_left_of_the_images_gives_the_same_weights() -> None:
    """Two time steps in the plate left of the images: every layout returns (K, B, T, ...) and equal weights."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("time", 2, dim=-2):
                u = pyro.sample("u", dist.Normal(z, torch.tensor([[0.5], [1.5]])))
                pyro.sample("x", dist.Normal(u, 1.0), obs=x.T)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.sum(-1) / 4, 0.8))
            with pyro.plate("time", 2, dim=-2):
                pyro.sample("u", dist.Normal((z + x.T) / 2, 0.9))

    x = torch.randn(5, 2)
    values, log_q = draw(guide, x, 7)
    assert values["z"].shape == (7, 5)
    assert values["u"].shape == (7, 5, 2)
    z, u = values["z"], values["u"]
    by_hand = dist.Normal((z.unsqueeze(-1) + x) / 2, 0.9).log_prob(u).sum(-1)
    torch.testing.assert_close(log_q["u"], by_hand)
    log_p = log_density(model, x, values)
    torch.testing.assert_close(log_p["u"], dist.Normal(z.unsqueeze(-1), torch.tensor([0.5, 1.5])).log_prob(u).sum(-1))
    torch.testing.assert_close(log_p["x"], dist.Normal(u, 1.0).log_prob(x).sum(-1))
    noise = torch.tensor([0.25 + 1, 2.25 + 1]).diag() + 1.0
    truth = dist.MultivariateNormal(torch.zeros(2), noise).log_prob(x)
    log_w = log_weights(model, guide, x, 20_000, seed=0)
    w = (log_w - log_w.amax(0)).exp()
    error = w.std(0) / w.mean(0) / math.sqrt(len(w))
    assert ((log_w.logsumexp(0) - math.log(len(w)) - truth).abs() < 5 * error).all()  # false alarms 3e-6


def test_second_plate_of_the_batch_size_is_not_the_data_plate() -> None:
    """Nothing relates the rows of the two plates; only the batch as a whole has a weight."""
    program, y, x = LinearGaussian(2), torch.randn(4), LinearGaussian(2).simulate(4)

    def model(x: Tensor) -> None:
        program.model(x)
        with pyro.plate("again", 4):
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    with pytest.raises(ValueError, match="Site 'y' is outside the data plate 'data'"):
        score(model, program.guide, x, 5)
    found = log_weights(model, program.guide, x, 5, seed=0, shared="sampled")
    expected = program.log_evidence(x).sum() + dist.Normal(0.0, 1.0).log_prob(y).sum()
    torch.testing.assert_close(found, expected.expand(5))


def test_obs_mask_with_a_guide_for_the_hidden_images() -> None:
    seen = torch.tensor([True, False, True, False])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x, obs_mask=seen)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x / 2, 1.0))
            with poutine.mask(mask=~seen):
                pyro.sample("x_unobserved", dist.Normal(z, 1.5))

    x = torch.randn(4)
    for objective, stock in ((ELBO(), Trace_ELBO()),):
        pyro.set_rng_seed(1)
        expected = stock.loss(model, guide, x)
        pyro.set_rng_seed(1)
        assert float(objective.loss(model, guide, x)) == pytest.approx(expected)
    found = log_weights(model, guide, x, 20_000, seed=0)
    truth = torch.where(seen, dist.Normal(0.0, math.sqrt(2)).log_prob(x), 0.0)
    w = (found - found.amax(0)).exp()
    error = w.std(0) / w.mean(0) / math.sqrt(len(w))
    assert ((found.logsumexp(0) - math.log(len(w)) - truth).abs() < 5 * error).all()  # false alarms 2e-6


def test_posterior_means_with_a_plate_left_of_the_images() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("time", 2, dim=-2), pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.T, 1e-9))

    x = torch.arange(6.0).reshape(3, 2)
    torch.testing.assert_close(posterior_means(guide, x, seed=0), x.double())


def test_subsampled_pixels_are_not_a_likelihood() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("pixels", 10, subsample_size=2, dim=-2) as rows:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x.T[rows])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(-1), 0.3))

    assert "plate 'pixels' subsamples 2 of 10" in score(model, guide, torch.randn(3, 10), 20, seed=0).reason


def test_batch_statistics_in_training_are_per_particle() -> None:
    """There are as many images as features, so that BatchNorm1d would accept (K, B, D); the loss matches stock Pyro."""
    norm = nn.BatchNorm1d(4, momentum=0.0)
    program = LinearGaussian(4)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            loc = (3 * norm(z)) @ program.weight.T
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    x = program.simulate(4)
    pyro.set_rng_seed(1)
    ours = torch.stack([ELBO(2).loss(model, program.guide, x) for _ in range(300)])
    stock = torch.tensor([Trace_ELBO(num_particles=2).loss(model, program.guide, x) for _ in range(300)])
    error = float((ours.var() + stock.var()).sqrt()) / math.sqrt(300)
    assert abs(float(ours.mean() - stock.mean())) < 5 * error  # false alarms 6e-7


def test_guide_may_name_the_data_plate_differently() -> None:
    program, x = LinearGaussian(2), LinearGaussian(2).simulate(4)

    def guide(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.MultivariateNormal(program.posterior_mean(x), scale_tril=program.scale_tril))

    torch.testing.assert_close(log_weights(program.model, guide, x, 5), program.log_evidence(x).expand(5, 4))
