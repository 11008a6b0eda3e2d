"""Adapted proposals: log p(x) in closed form, by quadrature and by enumeration, unbiased weights, and the fallback."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.discrete import pair
from helpers.oracles import BernoulliDecoder, Bounded, LinearGaussian, Waiting
from helpers.programs import images, small_vae, two_layer
from torch import Tensor

from pyro_vae import memory
from pyro_vae.evaluate import AISConfig, adapted_log_weights, ais, score
from pyro_vae.evaluate.proposals import adaptive


def ratios(program: object, x: Tensor, truth: Tensor, num_samples: int, **options: object) -> Tensor:
    """Return w / p(x) (K, B), whose mean is 1."""
    weights = adapted_log_weights(program.model, program.guide, x, num_samples, seed=0, **options)
    return (weights.log_w - truth.double()).exp()


def assert_mean_is_one(ratio: Tensor, limit: float = 5.0) -> None:
    """Compare the mean weight of each image with p(x), at 5 s.e.: false alarms 6e-7 for each image if w is bounded."""
    error = ratio.std(0) / math.sqrt(len(ratio))
    assert ((ratio.mean(0) - 1).abs() < limit * error).all(), (ratio.mean(0) - 1) / error


@pytest.mark.parametrize("proposal", ["adaptive", "laplace"])
@pytest.mark.parametrize("variance_ratio", [0.2, 4.0])
def test_linear_gaussian_program_needs_few_draws(proposal: str, variance_ratio: float) -> None:
    """The posterior is Gaussian with full covariance: the ESS of the mixture is above half, and the mean is 1."""
    program = LinearGaussian(3, variance_ratio=variance_ratio)
    x = program.simulate(20)
    ratio = ratios(program, x, program.log_evidence(x), 4000, proposal=proposal)
    assert_mean_is_one(ratio)
    ess = ratio.sum(0).square() / ratio.square().sum(0) / len(ratio)
    assert float(ess.min()) > 0.5


@pytest.mark.parametrize(("proposal", "units"), [("adaptive", 2), ("local", 1), ("local", 2)])
def test_decoder_agrees_with_quadrature(proposal: str, units: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All images; "local" is a Gaussian for one unit and a flow for two, here after 50 steps."""
    monkeypatch.setattr(adaptive, "_LOCAL_STEPS", 50)
    program = BernoulliDecoder(units)
    x = (torch.arange(64)[:, None] >> torch.arange(6)) % 2.0
    truth = program.log_evidence(x)
    assert_mean_is_one(ratios(program, x, truth, 4000, proposal=proposal))
    assert float(truth.exp().sum()) == pytest.approx(1, abs=1e-4)  # all images: the quadrature itself


class TwoModes:
    """z ~ N(0, 5^2), x|z ~ N(|z|, 0.5^2): two far modes at +x and -x, which the guide covers and no Gaussian does."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(x.shape[0]), 5.0))
            pyro.sample("x", dist.Normal(z.abs(), 0.5), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(torch.zeros(x.shape[0]), 6.0))

    def one_sided(self, x: Tensor) -> None:
        """Guide at one of the modes, whose tail reaches the other."""
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.StudentT(2.0, x, 1.0))

    def log_evidence(self, x: Tensor) -> Tensor:
        axis = torch.linspace(-40, 40, 80_001, dtype=torch.float64)
        prior, likelihood = dist.Normal(0.0, 5.0).log_prob(axis), dist.Normal(axis.abs(), 0.5)
        return (prior + likelihood.log_prob(x.double()[:, None])).logsumexp(1) + math.log(float(axis[1] - axis[0]))


@pytest.mark.parametrize("guide", ["guide", "one_sided"])
@pytest.mark.parametrize("proposal", ["adaptive", "laplace"])
def test_guide_in_the_mixture_finds_a_second_mode(guide: str, proposal: str) -> None:
    """Weights are bounded by ten times those of the guide. A fitted Gaussian alone sees one mode: half of p(x)."""
    program, x = TwoModes(), torch.tensor([4.0, 8.0])
    weights = adapted_log_weights(program.model, getattr(program, guide), x, 100_000, proposal=proposal, seed=0)
    assert_mean_is_one((weights.log_w - program.log_evidence(x)).exp())


def test_constrained_latent_is_sampled_in_unconstrained_space() -> None:
    program, x = Waiting(), dist.Exponential(1.0).sample((20, 5))
    assert_mean_is_one(ratios(program, x, program.log_evidence(x), 4000))


def test_guide_beyond_the_support_of_the_prior_keeps_weights_unbiased() -> None:
    program, x = Bounded(1.5), torch.tensor([[0.2], [0.9], [3.0]])
    assert_mean_is_one(ratios(program, x, program.log_evidence(x), 20_000))


def test_discrete_latent_of_the_model_is_summed_out() -> None:
    """Against the same program with the sum in closed form, at 5 s.e. of both: false alarms 6e-7 for each image."""
    explicit, closed = pair()
    x = torch.randn(5, 6)
    scores = [score(p.model, p.guide, x, 4000, seed=s, proposal="adaptive") for s, p in enumerate((explicit, closed))]
    difference = scores[0].log_likelihood - scores[1].log_likelihood
    assert all(each.adapted.all() for each in scores)
    assert (np.abs(difference) < 5 * np.sqrt(scores[0].relative_variance + scores[1].relative_variance)).all()


def test_two_layers_agree_with_long_annealing() -> None:
    """Two latent sites, of which one depends on the other: at 5 s.e. of the difference over 20 images, plus 0.02."""
    program, x = two_layer(), images(20)
    long = ais(program.model, program.guide, x, AISConfig(32, 150, 2), seed=0).lower
    scores = score(program.model, program.guide, x, 4000, seed=1, proposal="adaptive")
    difference = scores.log_likelihood - long
    assert abs(difference.mean()) < 5 * difference.std(ddof=1) / math.sqrt(20) + 0.02


@pytest.mark.slow
def test_standard_errors_cover_the_truth() -> None:
    """The interval of 2 s.e. contains log p(x) in 95 % of repetitions: 64 images, 50 seeds, at least 91 %.

    The estimates of an image are independent over seeds; for a coverage of 95 %, 3,200 repetitions reach 91 % with a
    probability of 1 - 1e-20.
    """
    program = BernoulliDecoder(2)
    x = (torch.arange(64)[:, None] >> torch.arange(6)) % 2.0
    truth, covered = program.log_evidence(x).cpu().numpy(), []
    for seed in range(50):
        scores = score(program.model, program.guide, x, 500, seed=seed, proposal="adaptive")
        covered.append(np.abs(scores.log_likelihood - truth) < 2 * np.sqrt(scores.relative_variance))
    assert np.mean(covered) > 0.91


def test_last_draws_do_not_depend_on_the_adaptation(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image whose test draws are all called bad gets further rounds, and its weights stay unbiased."""
    program = BernoulliDecoder(1)
    x = (torch.arange(16)[:, None] >> torch.arange(6)) % 2.0
    plain = adapted_log_weights(program.model, program.guide, x, 2000, seed=0)
    monkeypatch.setattr(adaptive, "khat_threshold", lambda _: -math.inf)
    longer = adapted_log_weights(program.model, program.guide, x, 2000, seed=0)
    assert longer.evaluations.min() == longer.evaluations.max() > plain.evaluations.min()
    assert_mean_is_one((longer.log_w - program.log_evidence(x).double()).exp())


def test_scores_keep_the_bounds_of_the_guide() -> None:
    program, x = LinearGaussian(2, variance_ratio=3.0), LinearGaussian(2).simulate(10)
    by_guide = score(program.model, program.guide, x, 400, seed=0)
    adapted = score(program.model, program.guide, x, 400, seed=0, proposal="adaptive")
    for name in ("elbo", "rate", "distortion", "iwae", "iwae_se"):
        np.testing.assert_array_equal(getattr(adapted, name), getattr(by_guide, name))
    assert adapted.adapted.all()
    assert not by_guide.adapted.any()
    assert (adapted.evaluations > 800).all()
    assert adapted.relative_variance.max() < by_guide.relative_variance.min()


def test_program_that_cannot_be_adapted_keeps_the_guide_and_says_why() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Bernoulli(0.3 * torch.ones(x.shape[0])))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Bernoulli(torch.full((x.shape[0],), 0.5)))

    x = torch.randn(4)
    by_guide = score(model, guide, x, 100, seed=0)
    found = score(model, guide, x, 100, seed=0, proposal="adaptive")
    np.testing.assert_array_equal(found.log_likelihood, by_guide.log_likelihood)
    assert not found.adapted.any()
    assert "discrete" in str(found.not_adapted)


def test_image_whose_density_is_undefined_keeps_the_guide() -> None:
    """The likelihood of the second image is NaN for z > 2, where only the proposal draws."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(x.shape[0]), 1.0))
            loc = torch.where((z > 0.2) & (x < 0), torch.nan, z)
            pyro.sample("x", dist.Normal(loc, 1.0, validate_args=False), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(torch.full((x.shape[0],), -1.0), 0.1))

    x = torch.tensor([0.5, -0.5])
    by_guide = score(model, guide, x, 100, seed=0)
    found = score(model, guide, x, 100, seed=0, proposal="adaptive")
    assert found.adapted.tolist() == [True, False]
    assert found.log_likelihood[1] == by_guide.log_likelihood[1]
    assert found.not_adapted


def test_compiled_weights_equal_those_of_the_program() -> None:
    torch.manual_seed(0)
    vae, x = small_vae(), images(12)
    eager, compiled = (
        adapted_log_weights(vae.model, vae.guide, x, 300, seed=0, compiled=compiled) for compiled in (False, True)
    )
    torch.testing.assert_close(compiled.log_w, eager.log_w, rtol=0, atol=5e-3)
    torch.testing.assert_close(compiled.evaluations, eager.evaluations)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_samples": 0}, "at least 1"),
        ({"num_samples": 5, "proposal": "best"}, "choose one of local, laplace, adaptive"),
    ],
)
def test_invalid_settings_are_rejected(options: dict, words: str) -> None:
    program = LinearGaussian(2)
    with pytest.raises(ValueError, match=words):
        adapted_log_weights(program.model, program.guide, program.simulate(2), **options)


def test_weights_do_not_depend_on_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    program = LinearGaussian(3, variance_ratio=2.0)
    x = program.simulate(5)
    plenty = adapted_log_weights(program.model, program.guide, x, 90, seed=0)
    monkeypatch.setattr(memory, "free", lambda: 10 * 1000 * x.numel() * 2)  # ten particles at once, by the estimate
    scarce = adapted_log_weights(program.model, program.guide, x, 90, seed=0)
    torch.testing.assert_close(scarce.log_w, plenty.log_w, rtol=1e-5, atol=1e-4)


def test_memory_that_runs_out_leaves_the_guide(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> Tensor:
        raise torch.OutOfMemoryError

    program = LinearGaussian(2)
    monkeypatch.setattr(adaptive, "fit_round", full)
    found = score(program.model, program.guide, program.simulate(3), 50, seed=0, proposal="adaptive")
    assert not found.adapted.any()
    assert "memory ran out" in str(found.not_adapted)
