"""Bounds against closed forms and quadrature. Each comparison at 4 s.e. has a false-alarm rate of 6e-5."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from itertools import pairwise, product

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.oracles import BernoulliDecoder, LinearGaussian

from pyro_vae.errors import UserError
from pyro_vae.evaluate import (
    Scores,
    iwae,
    log_weight_terms,
    log_weights,
    particle_counts,
    score,
    scores_from_terms,
    summarize,
)
from pyro_vae.evaluate.likelihood.weights import LogWeightTerms
from pyro_vae.trace import CompiledBackend, derive_seed


def se(values: np.ndarray) -> float:
    return values.std(ddof=1) / math.sqrt(len(values))


def test_bounds_for_guides_of_the_wrong_width(promised: Callable[[str], None]) -> None:
    """25 guides of 0.5 to 4 times the posterior's variance in 1 to 20 dimensions, 400 images each.

    In every cell the gap of the ELBO matches the KL formula, IWAE rises over K = 1, 4, 16, 64, 256 image by image
    (nested groups: Jensen), and its mean does not exceed log p(x). The estimate of log p(x) is compared at its own
    standard error in the 9 cells where that exists and is small: at a ratio of 0.5 the weights have infinite variance,
    and where the variance is large 256 weights are too few for the delta method. 59 comparisons at 4 s.e., false alarms
    0.4 % in all.
    """
    gaps, errors = {}, {}
    for ratio, latent_dim in product((0.5, 1.1, 1.5, 2.0, 4.0), (1, 2, 5, 10, 20)):
        cell = f"{ratio} times the variance, D = {latent_dim}"
        program = LinearGaussian(latent_dim, variance_ratio=ratio)
        x = program.simulate(400)
        truth = program.log_evidence(x).cpu().numpy()
        parts = log_weight_terms(program.model, program.guide, x, 256, seed=len(gaps))
        scores = scores_from_terms(parts)

        gap = truth - scores.elbo
        gaps[cell] = (gap.mean() - program.gap) / se(gap)
        curve = torch.stack([iwae(parts.log_weights, k).mean(0) for k in (1, 4, 16, 64, 256)])
        assert (curve.diff(dim=0) > 0).all(), cell
        np.testing.assert_allclose(curve[[0, -1]].cpu(), [scores.elbo, scores.log_likelihood], rtol=1e-12)
        below = truth - scores.log_likelihood
        assert below.mean() > -4 * se(below), cell
        if 1 < ratio <= 2 and latent_dim <= 5:
            # Each image's error is divided by its own standard error, so that the mean has standard error
            # 1/sqrt(N); the bias of log p(x), half the relative variance, is removed.
            error = scores.relative_variance / 2 - below
            errors[cell] = (error / np.sqrt(scores.relative_variance)).mean() * math.sqrt(400)
    assert (len(gaps), len(errors)) == (25, 9)
    assert {cell: z for cell, z in gaps.items() if abs(z) >= 4} == {}
    assert {cell: z for cell, z in errors.items() if abs(z) >= 4} == {}
    worst = max(map(abs, gaps.values())), max(map(abs, errors.values()))
    promised(
        f"guides of the wrong width: the ELBO gap is the KL formula within {worst[0]:.1f} s.e. in 25 of 25 cells, "
        f"log p(x) is correct within {worst[1]:.1f} s.e. in 9 of 9"
    )


def test_log_likelihood_of_bernoulli_decoders_matches_quadrature(promised: Callable[[str], None]) -> None:
    """50 random nets in one and two dimensions, 8 images each, against 401 points on each axis.

    Each image is within 5 of its standard errors: 400 comparisons, false alarms 2.3e-4 in all. The guide ignores the
    image, so that this standard error is of the order of 0.01 nats at K = 10,000; allowed are 0.02 nats for the mean
    error over all nets and 0.03 for the mean of any net.
    """
    errors, deviations = [], []
    for latent_dim, net in product((1, 2), range(25)):
        torch.manual_seed(net)
        program = BernoulliDecoder(latent_dim)
        x = torch.bernoulli(torch.full((8, 6), 0.5))
        truth = program.log_evidence(x).cpu().numpy()
        scores = score(program.model, program.guide, x, 10_000, seed=net)
        error = np.abs(scores.log_likelihood - truth)
        deviations.append((error / np.sqrt(scores.relative_variance)).max())
        errors.append(error.mean())
    assert max(deviations) < 5
    assert np.mean(errors) < 0.02
    assert max(errors) < 0.03
    promised(
        f"log p(x) for K = 10,000 against quadrature, 50 random decoders: mean error {np.mean(errors):.4f} nats, "
        f"maximum {max(errors):.3f}, within {max(deviations):.1f} s.e. for 400 of 400 images"
    )


def test_quadrature_has_converged() -> None:
    program = BernoulliDecoder(2)
    x = torch.bernoulli(torch.full((8, 6), 0.5))
    torch.testing.assert_close(program.log_evidence(x, 401), program.log_evidence(x, 801, 10.0), atol=1e-9, rtol=0)


def test_iwae_curve_is_monotone_by_construction() -> None:
    """For any weights, from k to each of its multiples."""
    log_w = 10 * torch.randn(5000, 30).double()
    sizes = particle_counts(5000)
    assert sizes == [1, 2, 5, 10, 50, 100, 500, 1000, 5000]
    curve = {k: iwae(log_w, k).mean(0) for k in sizes}
    for small in sizes:
        for large in (k for k in sizes if k % small == 0):
            assert (curve[large] >= curve[small] - 1e-9).all()
    torch.testing.assert_close(curve[1], log_w.mean(0))
    torch.testing.assert_close(curve[5000], log_w.logsumexp(0) - math.log(5000))


@pytest.mark.parametrize("ratio", [0.5, 0.8, 1.2, 1.5, 2.0])
def test_iwae_rises_with_k_in_expectation(ratio: float) -> None:
    """K = 1, 2, 3, 7, 20, each with separate draws, 2,000 images: no decrease by more than 4 s.e., 20 steps in all."""
    program = LinearGaussian(2, variance_ratio=ratio)
    x = program.simulate(2000)
    truth = program.log_evidence(x)
    means, errors = [], []
    for k in (1, 2, 3, 7, 20):
        below = truth - iwae(log_weights(program.model, program.guide, x, k, seed=k), k)[0]
        means.append(float(below.mean()))
        errors.append(float(below.std()) / math.sqrt(2000))
    for (low, high), (a, b) in zip(pairwise(means), pairwise(errors), strict=True):
        assert high < low + 4 * math.hypot(a, b)
    assert means[-1] > -4 * errors[-1]  # never above log p(x)


def test_iwae_groups_by_hand() -> None:
    log_w = torch.tensor([0.0, math.log(3.0), math.log(5.0), math.log(7.0), 9.0]).double().unsqueeze(1)
    by_hand = (math.log((1 + 3) / 2) + math.log((5 + 7) / 2)) / 2  # the fifth weight is left over
    assert iwae(log_w, 2).mean().item() == pytest.approx(by_hand)
    with pytest.raises(ValueError, match="between 1 and 5, the number of weights"):
        iwae(log_w, 6)


def test_equal_weights_give_the_same_value_for_every_k() -> None:
    for num_samples in range(1, 61):
        log_w = torch.full((num_samples, 2), -90.0).double()
        scores = scores_from_terms(LogWeightTerms(log_w, 0 * log_w, 0 * log_w))
        for found in (scores.elbo, scores.log_likelihood, scores.psis, *scores.iwae):
            np.testing.assert_allclose(found, -90.0, rtol=1e-14)
        for k in range(1, num_samples + 1):
            torch.testing.assert_close(iwae(log_w, k), log_w[: num_samples // k])


def test_relative_variance_of_two_weights_by_hand() -> None:
    """Weights 1 and 3: mean 2, variance 2 (divisor K - 1), half of it for the mean, divided by 2^2."""
    log_w = torch.tensor([[1.0], [3.0]]).double().log()
    scores = scores_from_terms(LogWeightTerms(log_w, 0 * log_w, 0 * log_w))
    assert scores.relative_variance == pytest.approx(0.25)
    assert scores.ess == pytest.approx(1.6)
    assert scores.iwae_se[0] == pytest.approx(math.log(3) / 2)  # half their difference


def test_standard_error_of_log_likelihood_matches_repeats() -> None:
    """The delta method against the spread of 400 repeats: a ratio of standard deviations, known to 3.5 %."""
    program = LinearGaussian(2, variance_ratio=1.5)
    x = program.simulate(1)
    repeats = score(program.model, program.guide, x.expand(400, -1), 2000, seed=0)
    ratio = np.sqrt(repeats.relative_variance.mean()) / repeats.log_likelihood.std(ddof=1)
    assert abs(ratio - 1) < 4 * 0.035


def test_summary_is_finite_or_has_a_reason() -> None:
    program = LinearGaussian(2, variance_ratio=1.5)
    x = program.simulate(6)
    whole = score(program.model, program.guide, x, 60, seed=0)
    parts = Scores.concatenate(score(program.model, program.guide, xb, 60, seed=0) for xb in x.split(6))
    np.testing.assert_array_equal(whole.iwae, parts.iwae)
    numbers = summarize(whole, active_units=2, num_pixels=7, density=True)
    assert numbers["elbo"] == pytest.approx(-(numbers["rate"] + numbers["distortion"]))
    assert numbers["iwae"]["1"] == pytest.approx(numbers["elbo"])
    assert numbers["iwae"]["60"] == pytest.approx(numbers["log_likelihood"])
    assert numbers["log_likelihood_se"] == pytest.approx(se(whole.log_likelihood))
    assert numbers["log_likelihood_mc_se"] == pytest.approx(math.sqrt(whole.relative_variance.sum()) / 6)
    # A uniform density over [0, 1] has log p = 0 and costs all 8 bits.
    assert numbers["bits_per_dim"] == pytest.approx(8 - numbers["log_likelihood"] / 7 / math.log(2))
    probability = summarize(whole, active_units=2, num_pixels=7)
    assert probability["bits_per_dim"] == pytest.approx(-numbers["log_likelihood"] / 7 / math.log(2))
    assert numbers["reasons"] == {}

    lonely = summarize(score(program.model, program.guide, x[:1], 1, seed=0), active_units=0, num_pixels=7)
    missing = {name for name, value in lonely.items() if value is None}
    assert missing == {
        "jvi1",
        "jvi2",
        "elbo_se",
        "log_likelihood_se",
        "log_likelihood_mc_se",
        "khat_median",
        "khat_bad_fraction",
    }
    assert missing == lonely["reasons"].keys()
    assert "an importance weight is zero or non-finite" not in lonely["reasons"].values()


def test_standard_error_over_groups_matches_repeats() -> None:
    """The s.e. of IWAE_5 from 400 groups, against the spread over 400 repeats, known to 3.5 %, at 4 s.e."""
    program = LinearGaussian(2, variance_ratio=1.5)
    x = program.simulate(1)
    repeats = score(program.model, program.guide, x.expand(400, -1), 2000, seed=0)
    row = repeats.particle_counts.index(5)
    ratio = repeats.iwae_se[row].mean() / repeats.iwae[row].std(ddof=1)
    assert abs(ratio - 1) < 4 * 0.035


def test_standard_error_of_a_single_group_matches_repeats() -> None:
    """K = 1,500 has one group of 1,000 and one of 1,500: the delta method against 400 repeats, known to 3.5 %."""
    program = LinearGaussian(2, variance_ratio=1.5)
    x = program.simulate(1)
    repeats = score(program.model, program.guide, x.expand(400, -1), 1500, seed=0)
    assert repeats.particle_counts[-2:] == [1000, 1500]
    for bound, error in zip(repeats.iwae[-2:], repeats.iwae_se[-2:], strict=True):
        assert abs(np.sqrt((error**2).mean()) / bound.std(ddof=1) - 1) < 4 * 0.035
    np.testing.assert_allclose(repeats.iwae_se[-1] ** 2, repeats.relative_variance)


def test_curve_rises_where_groups_are_nested() -> None:
    """IWAE_k <= IWAE_m for every image if k divides m and m divides K; otherwise some image may fall."""
    log_w = 3 * torch.distributions.StudentT(3.0).sample((250, 300)).double()
    falls = []
    for num_samples in (200, 250):
        zeros = torch.zeros_like(log_w[:num_samples])
        scores = scores_from_terms(LogWeightTerms(log_w[:num_samples], zeros, zeros))
        counts = scores.particle_counts
        for (i, k), (j, m) in itertools.combinations(enumerate(counts), 2):
            if m % k == 0:
                nested = num_samples % m == 0
                fallen = bool((scores.iwae[j] < scores.iwae[i] - 1e-12).any())
                assert not (nested and fallen)
                falls += [(num_samples, k, m)] if fallen else []
    assert (250, 50, 100) in falls  # the weights 201 to 250 are in a group of 50 and in none of 100


def test_zero_weights_make_metrics_null_with_a_reason() -> None:
    """A prior whose support is smaller than the guide's: the ELBO is -inf, log p(x) is finite."""
    program = LinearGaussian(1)

    def model(x: torch.Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Uniform(-1.2, 1.2).expand([1]).to_event(1))
            pyro.sample("x", dist.Normal(z @ program.weight.T, 1.0).to_event(1), obs=x)

    x = (program.weight[:, 0] + program.bias).expand(10, -1)  # z = 1: some draws are outside, and some inside
    numbers = summarize(score(model, program.guide, x, 100, seed=0), active_units=1, num_pixels=7)
    assert numbers["elbo"] is None
    assert numbers["iwae"]["1"] is None
    assert math.isfinite(numbers["log_likelihood"])
    assert {"elbo", "elbo_se", "rate", "iwae"} <= numbers["reasons"].keys()
    assert set(numbers["reasons"].values()) >= {"an importance weight is zero or non-finite"}
    json.dumps(numbers, allow_nan=False)


def test_weights_are_per_image() -> None:
    """A column of the weights belongs to one image; the joint weight of the batch would be their sum."""
    program = LinearGaussian(2)
    x = program.simulate(3)
    weights = log_weights(program.model, program.guide, x, 2, seed=0)
    torch.testing.assert_close(weights[0], program.log_evidence(x))


def test_batched_scores_use_a_derived_seed_per_batch() -> None:
    """Bit-identical to batching by the caller; compiled graphs are reused between batches."""
    program = BernoulliDecoder(2)
    x = torch.bernoulli(torch.full((7, 6), 0.5))
    of = program.model, program.guide
    expected = Scores.concatenate(
        score(*of, images, 40, seed=derive_seed(5, "batch", number)) for number, images in enumerate(x.split(3))
    )
    found = score(*of, x, 40, batch_size=3, seed=5)
    for name, values in vars(expected).items():
        np.testing.assert_array_equal(getattr(found, name), values)
    compiled = score(*of, x, 40, batch_size=3, seed=5, compile=True)
    np.testing.assert_allclose(compiled.iwae, expected.iwae, atol=1e-4)
    np.testing.assert_array_equal(score(*of, x, 40, batch_size=7, seed=5).elbo, score(*of, x, 40, seed=FIRST).elbo)
    afresh = [score(*of, x, 40, batch_size=3).elbo for _ in range(2)]
    assert (afresh[0] != afresh[1]).all()
    with pytest.raises(UserError, match="batch_size is 0"):
        score(*of, x, 40, batch_size=0)
    with pytest.raises(UserError, match="no image"):
        score(*of, x[:0], 40, batch_size=3)


FIRST = derive_seed(5, "batch", 0)


def of_values(log_likelihood: list[float], khat: list[float], num_samples: int, reason: str | None = None) -> Scores:
    """Return scores with values only in the fields that are printed."""
    number = len(log_likelihood)
    nothing = dict.fromkeys(("rate", "relative_variance", "ess", "psis", "jvi1", "jvi2"), np.full(number, np.nan))
    return Scores(
        num_samples,
        **nothing,
        elbo=np.array(log_likelihood) - 1.5,
        distortion=np.full(number, 20.125),
        log_likelihood=np.array(log_likelihood),
        khat=np.array(khat),
        iwae=np.full((len(particle_counts(num_samples)), number), np.nan),
        iwae_se=np.full((len(particle_counts(num_samples)), number), np.nan),
        adapted=np.zeros(number, dtype=bool),
        evaluations=np.full(number, float(num_samples)),
        reason=reason,
    )


def test_scores_print_one_line_in_nats() -> None:
    """Mean -21.5 of -20 and -23, with standard error 3 / 2; the threshold is 1 - 1 / log10(1000) = 0.667."""
    assert str(of_values([-20.0, -23.0], [0.66, 0.68], 1000)) == (
        "log p(x) -21.50 +- 1.50 nats (ELBO -23.00, K = 1000, 2 images); k-hat > 0.67 for 1 of 2"
    )
    assert str(of_values([-20.0, -23.0], [math.nan, math.inf], 100)) == (
        "log p(x) -21.50 +- 1.50 nats (ELBO -23.00, K = 100, 2 images); k-hat > 0.50 for 1 of 1"
    )
    assert str(of_values([-20.0], [math.nan], 10)) == "log p(x) -20.00 nats (ELBO -21.50, K = 10, 1 image); no k-hat"


def test_scores_without_weights_print_the_reason() -> None:
    assert str(of_values([math.nan] * 2, [math.nan] * 2, 10, "the prior is improper")) == (
        "no log p(x): the prior is improper (distortion 20.12 nats, K = 10, 2 images)"
    )


def test_reason_of_one_batch_applies_to_all() -> None:
    """Draws are positive for two images and negative for the others: 5 or -5, 30 standard deviations from 0."""

    def model(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Exponential(1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1 / 6))

    x = torch.tensor([5.0, 5.0, -5.0, -5.0])
    for images, undefined in ((x, [False, False, True, True]), (x.flip(0), [True, True, False, False])):
        scores = score(model, guide, images, 20, batch_size=2, seed=0)
        assert scores.reason == "the guide draws 'z' outside the support of its prior"
        assert np.isnan(scores.log_likelihood).tolist() == undefined


def test_reused_reader_gives_the_scores_of_each_call() -> None:
    program = LinearGaussian(2)
    backend = CompiledBackend()
    for seed in (0, 1):
        x = program.simulate(6)
        kept = score(program.model, program.guide, x, 20, seed=seed, backend=backend)
        np.testing.assert_allclose(kept.elbo, score(program.model, program.guide, x, 20, seed=seed).elbo, rtol=1e-10)
