"""The aggregate posterior: ELBO surgery against direct sums, and its limits."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.oracles import LinearGaussian
from helpers.programs import images, small_vae, two_layer
from torch import Tensor

from pyro_vae.evaluate import ELBOSurgery, elbo_surgery, split_rate
from pyro_vae.trace import derive_seed, draw, log_density, read_only


def test_surgery_matches_the_mixture_of_posteriors() -> None:
    """Term by term for the same draws, by the density of the mixture."""
    program = LinearGaussian(2, variance_ratio=1.5)
    x = program.simulate(7)
    found = elbo_surgery(program.model, program.guide, x, seed=3)
    q = dist.MultivariateNormal(program.posterior_mean(x), scale_tril=program.scale_tril)
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(3, "surgery"))
        z = q.expand((1, 7)).sample()[0]
    aggregate = dist.MixtureSameFamily(dist.Categorical(logits=torch.zeros(7)), q).log_prob(z)
    prior = dist.Normal(0.0, 1.0).log_prob(z).sum(1)
    np.testing.assert_allclose(found.mutual_information, (q.log_prob(z) - aggregate).cpu())
    np.testing.assert_allclose(found.marginal_kl, (aggregate - prior).cpu())
    np.testing.assert_allclose(found.rate, (q.log_prob(z) - prior).cpu())
    pairs = q.log_prob(z.unsqueeze(1))  # (codes, posteriors)
    others = torch.stack([pairs[n, [m for m in range(7) if m != n]].logsumexp(0) - math.log(6) for n in range(7)])
    np.testing.assert_allclose(found.mutual_information_upper, (q.log_prob(z) - others).cpu())
    first = elbo_surgery(program.model, program.guide, x, num_codes=3, seed=3)
    np.testing.assert_allclose(first.mutual_information, found.mutual_information[:3])
    np.testing.assert_allclose(first.mutual_information_upper, found.mutual_information_upper[:3])


def test_guide_that_ignores_x_has_no_mutual_information() -> None:
    vae, x = small_vae(), images(9)
    with torch.no_grad():
        for p in vae.posterior.parameters():
            p.zero_()
        vae.posterior.net[1][-1].bias.copy_(torch.tensor([0.5, 0.0, 0.3, 0.0]))
    found = elbo_surgery(vae.model, vae.guide, x, seed=0)
    np.testing.assert_allclose(found.mutual_information, 0, atol=1e-12)
    assert (found.marginal_kl != 0).all()


def test_separated_codes_have_maximal_mutual_information() -> None:
    """log N, the entropy of the index of an image."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(x, 1e-3))

    found = elbo_surgery(model, guide, torch.arange(30.0), seed=0)
    np.testing.assert_allclose(found.mutual_information, math.log(30))


def test_surgery_of_two_layers_sums_to_the_rate() -> None:
    program, x = two_layer(), images(8)
    found = elbo_surgery(program.model, program.guide, x, seed=0)
    with torch.no_grad(), read_only(program.model, program.guide, x=x, seed=0, purpose="surgery"):
        values, log_q = draw(program.guide, x, 1)
        log_p = log_density(program.model, x, values)
    rate = sum(log_q.values()) - sum(log_p[name] for name in values)
    np.testing.assert_allclose(found.rate, rate[0].cpu())


class MatchedPosterior:
    """x ~ N(0, (1 - sd^2) I) with q(z|x) = N(x, sd^2 I): q(z) is the prior N(0, I), and I(x; z) = -D log sd."""

    def __init__(self, latent_dim: int, sd: float = 0.5) -> None:
        self.latent_dim, self.sd = latent_dim, sd

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(self.latent_dim), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(x, self.sd).to_event(1))

    def simulate(self, number: int) -> Tensor:
        return torch.randn(number, self.latent_dim) * math.sqrt(1 - self.sd**2)

    def rate(self, x: Tensor) -> np.ndarray:
        units = -math.log(self.sd) + 0.5 * (self.sd**2 + x**2 - 1)
        return units.sum(1).cpu().numpy()


@pytest.mark.parametrize("num_codes", [None, 400])
def test_terms_of_a_matched_posterior_have_closed_forms(num_codes: int | None) -> None:
    """Two units: I = 2 log 2, bracketed by the bounds, and a marginal KL of 0, at 4 s.e.; both sum to the rate."""
    program = MatchedPosterior(2)
    x = program.simulate(1000)
    found = elbo_surgery(program.model, program.guide, x, num_codes=num_codes, seed=0)
    numbers, reasons = split_rate(program.rate(x), found)
    assert reasons == {}
    truth, error = 2 * math.log(2), numbers["mutual_information_se"]
    assert numbers["mutual_information"] - 4 * error < truth < numbers["mutual_information_upper"] + 4 * error
    assert numbers["mutual_information"] == pytest.approx(truth, abs=4 * error + 0.02)  # bias below 9 / (2 N)
    assert abs(numbers["marginal_kl"]) < 4 * numbers["marginal_kl_se"] + 0.02
    assert numbers["mutual_information"] + numbers["marginal_kl"] == pytest.approx(program.rate(x).mean())


def test_errors_of_the_terms_match_repeats() -> None:
    """200 repeats with other images, 60 codes of 120 images: standard deviations, known to 5 %, within 20 %.

    Terms of different images share the posteriors of the aggregate, which the errors ignore.
    """
    program = MatchedPosterior(1)
    repeats = []
    for _ in range(200):
        x = program.simulate(120)
        found = elbo_surgery(program.model, program.guide, x, num_codes=60)
        repeats.append(split_rate(program.rate(x), found)[0])
    for name in ("mutual_information", "marginal_kl"):
        spread = np.std([numbers[name] for numbers in repeats], ddof=1)
        error = math.sqrt(np.mean([numbers[f"{name}_se"] ** 2 for numbers in repeats]))
        assert error == pytest.approx(spread, rel=0.2)


def test_an_estimate_at_its_limit_is_null_with_a_reason() -> None:
    """I = 20 log 2 = 13.9 nats, more than the log of 100 images; the upper bound is above it."""
    program = MatchedPosterior(20)
    x = program.simulate(100)
    numbers, reasons = split_rate(program.rate(x), elbo_surgery(program.model, program.guide, x, seed=0))
    assert [name for name, value in numbers.items() if value is not None] == ["mutual_information_upper"]
    assert numbers["mutual_information_upper"] > 20 * math.log(2)
    assert reasons.keys() == {name for name, value in numbers.items() if value is None}
    assert all("at its limit, the log of the number of images, 4.61" in reason for reason in reasons.values())


def test_single_image_has_no_terms() -> None:
    one = np.zeros(1)
    numbers, reasons = split_rate(np.ones(1), ELBOSurgery(1, one, one + math.nan, one))
    assert set(numbers.values()) == {None}
    assert numbers.keys() == reasons.keys()
