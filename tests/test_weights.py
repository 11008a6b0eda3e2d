"""Importance weights against closed forms; chunks change nothing; bad input is refused."""

from __future__ import annotations

import pytest
import torch
from oracles import BernoulliDecoder, LinearGaussian

from pyro_vae.evaluate import log_weight_parts, log_weights, reduce


@pytest.mark.parametrize("latent_dim", [1, 2, 5, 20])
def test_the_exact_posterior_gives_log_evidence_in_every_weight(latent_dim: int) -> None:
    program = LinearGaussian(latent_dim)
    x = program.simulate(6)
    parts = log_weight_parts(program.model, program.guide, x, 300, seed=0)
    expected = program.log_evidence(x).expand(300, 6)
    torch.testing.assert_close(parts.log_weights, expected, rtol=0, atol=1e-10)
    scores = reduce(parts)
    assert scores.ess == pytest.approx(300, rel=1e-9)
    assert scores.relative_variance == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("num_samples", [1, 99, 300, 301])
def test_the_chunk_changes_no_weight(num_samples: int) -> None:
    program = BernoulliDecoder(2)
    x = torch.bernoulli(torch.full((4, 6), 0.5))
    default = log_weights(program.model, program.guide, x, num_samples, seed=5)
    assert default.shape == (num_samples, 4)
    for chunk in (1, 7, 300, num_samples, num_samples + 1):
        found = log_weights(program.model, program.guide, x, num_samples, chunk=chunk, seed=5)
        torch.testing.assert_close(found, default, rtol=0, atol=1e-12)


def test_more_samples_extend_the_same_draws() -> None:
    """Whole blocks of draws come first, so a longer run of the same seed starts with the shorter one."""
    program = BernoulliDecoder(1)
    x = torch.bernoulli(torch.full((3, 6), 0.5))
    few = log_weights(program.model, program.guide, x, 200, seed=5)
    many = log_weights(program.model, program.guide, x, 450, seed=5)
    torch.testing.assert_close(many[:200], few, rtol=0, atol=1e-12)


def test_parts_are_the_densities_of_their_names() -> None:
    program = LinearGaussian(2, variance_ratio=1.5)
    x = program.simulate(3)
    parts = log_weight_parts(program.model, program.guide, x, 20_000, seed=0)
    # E_q[log q - log p(z)] = KL(q || p(z)) in closed form; 4 s.e. of the mean, false alarms 6e-5 per image.
    mean, covariance = program.posterior_mean(x), program.covariance * 1.5
    rate = 0.5 * (covariance.trace() + (mean**2).sum(1) - 2 - covariance.logdet())
    sampled = parts.log_guide - parts.log_prior
    assert ((sampled.mean(0) - rate).abs() < 4 * sampled.std(0) / 20_000**0.5).all()
    reduced = reduce(parts)
    assert reduced.elbo == pytest.approx(-(reduced.rate + reduced.distortion), abs=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.5, -1.0, 2.0])
def test_pixels_outside_the_domain_are_refused(bad: float) -> None:
    program = BernoulliDecoder(1)
    x = torch.zeros(5, 6)
    x[3, 2] = bad
    with pytest.raises(ValueError, match=r"image 3|outside the support of its Bernoulli") as caught:
        log_weights(program.model, program.guide, x, 4)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("arguments", [{"num_samples": 0}, {"num_samples": 3, "chunk": 0}])
def test_counts_below_one_are_refused(arguments: dict[str, int]) -> None:
    program = BernoulliDecoder(1)
    with pytest.raises(ValueError, match="is 0; it must be at least 1"):
        log_weights(program.model, program.guide, torch.zeros(2, 6), **arguments)
