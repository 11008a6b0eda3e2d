"""Importance weights against closed forms; chunk sizes do not change them; invalid input is rejected."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from helpers.oracles import BernoulliDecoder, LinearGaussian
from torch import Tensor

from pyro_vae.evaluate import Scores, log_weight_terms, log_weights, score, scores_from_terms, summarize
from pyro_vae.evaluate.likelihood import chunks
from pyro_vae.trace import CompiledBackend, EagerBackend


def test_exact_posterior_gives_log_evidence_in_every_weight(promised: Callable[[str], None]) -> None:
    """To 1e-12 nats, absolute. Equal weights have no tail, so k-hat is undefined."""
    worst = 0.0
    for latent_dim in (1, 2, 5, 20):
        program = LinearGaussian(latent_dim)
        x = program.simulate(6)
        parts = log_weight_terms(program.model, program.guide, x, 300, seed=0)
        worst = max(worst, float((parts.log_weights - program.log_evidence(x)).abs().max()))
        scores = scores_from_terms(parts)
        assert scores.ess == pytest.approx(300, rel=1e-12)
        assert scores.relative_variance == pytest.approx(0, abs=1e-12)
        numbers = summarize(scores, active_units=latent_dim, num_pixels=7)
        for name in ("khat_median", "khat_bad_fraction"):
            assert numbers[name] is None
            assert numbers["reasons"][name].endswith("with weights that are finite and not all equal")
    assert worst < 1e-12
    promised(f"exact posterior: every weight equals log p(x) within {worst:.1e} nats in 1, 2, 5 and 20 dimensions")


@pytest.mark.parametrize("num_samples", [1, 99, 300, 301])
def test_chunk_size_does_not_change_the_weights(num_samples: int) -> None:
    program = BernoulliDecoder(2)
    x = torch.bernoulli(torch.full((4, 6), 0.5))
    default = log_weights(program.model, program.guide, x, num_samples, seed=5)
    assert default.shape == (num_samples, 4)
    for chunk in (1, 7, 300, num_samples, num_samples + 1):
        found = log_weights(program.model, program.guide, x, num_samples, chunk=chunk, seed=5)
        torch.testing.assert_close(found, default, rtol=0, atol=1e-12)


class Replay(EagerBackend):
    """A backend that replays given latents (K, B, D), the next `num_samples` of them at each call."""

    def __init__(self, z: Tensor, log_q: Tensor) -> None:
        super().__init__()
        self.z, self.log_q = z, log_q

    def draw(self, guide: Any, batch: Any, num_samples: int, layout: Any) -> Any:
        (z, self.z), (log_q, self.log_q) = (
            (values[:num_samples], values[num_samples:]) for values in (self.z, self.log_q)
        )
        return {"z": z}, {"z": log_q}


def test_chunk_and_batch_size_do_not_change_weights_or_scores(
    monkeypatch: pytest.MonkeyPatch, promised: Callable[[str], None]
) -> None:
    """K = 1,000 at six chunk and three batch sizes, the last batch smaller: weights and scores against one formula."""
    monkeypatch.setattr(chunks, "_MAX_ROWS", {"cpu": 900, "cuda": 900})  # blocks of 900, 300 and 225 particles
    program = BernoulliDecoder(2)
    x = torch.bernoulli(torch.full((4, 6), 0.5))
    z = 1.2 * torch.randn(1000, 4, 2)
    prior, guide = (dist.Normal(torch.zeros(2), scale).to_event(1) for scale in (1.0, 1.2))
    with torch.no_grad():
        likelihood = dist.Bernoulli(logits=program.net(z)).to_event(1).log_prob(x)
    expected = likelihood + prior.log_prob(z) - guide.log_prob(z)
    log_evidence = expected.logsumexp(0) - math.log(1000)

    worst = 0.0
    for chunk, size in product((1, 7, 300, 999, 1000, 5000), (1, 3, 4)):
        batches = [
            log_weight_terms(
                program.model, program.guide, xb, 1000, chunk=chunk, backend=Replay(zb, guide.log_prob(zb))
            )
            for xb, zb in zip(x.split(size), z.split(size, 1), strict=True)
        ]
        found = torch.cat([parts.log_weights for parts in batches], 1)
        scores = Scores.concatenate(map(scores_from_terms, batches))
        worst = max(worst, float((found - expected).abs().max()))
        worst = max(worst, float(abs(scores.log_likelihood - log_evidence.cpu().numpy()).max()))
        worst = max(worst, float(abs(scores.elbo - expected.mean(0).cpu().numpy()).max()))
    assert worst < 1e-12
    promised(f"chunk and batch sizes: weights and scores agree within {worst:.1e} nats in 18 of 18 cases")


@pytest.mark.parametrize("batch_size", [1, 7, None])
def test_batch_sizes_draw_other_samples_of_the_same_distribution(batch_size: int | None) -> None:
    """E[w] = p(x) for each: the mean of w / p(x) over 40 images of 250 weights at 4 s.e., false alarms 6e-5 each."""
    program = LinearGaussian(2, variance_ratio=1.5)
    x = program.simulate(40)
    found = score(program.model, program.guide, x, 250, batch_size=batch_size, seed=0)
    ratio = np.exp(found.log_likelihood - program.log_evidence(x).cpu().numpy())
    error = np.sqrt((ratio**2 * found.relative_variance).sum()) / 40
    assert abs(ratio.mean() - 1) < 4 * error
    other = score(program.model, program.guide, x, 250, batch_size=20, seed=0)
    assert (found.log_likelihood != other.log_likelihood).all()


def test_more_samples_extend_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws come in whole blocks, so that a longer run with the same seed starts with the shorter one."""
    monkeypatch.setattr(chunks, "_MAX_ROWS", {"cpu": 300, "cuda": 300})  # blocks of 100 particles
    program = BernoulliDecoder(1)
    x = torch.bernoulli(torch.full((3, 6), 0.5))
    few = log_weights(program.model, program.guide, x, 200, seed=5)
    many = log_weights(program.model, program.guide, x, 450, seed=5)
    torch.testing.assert_close(many[:200], few, rtol=0, atol=1e-12)


class SmallMemoryBackend(EagerBackend):
    """A backend that raises the out-of-memory error of a device or the CPU for more than `most` particles."""

    def __init__(self, most: int, error: RuntimeError) -> None:
        super().__init__()
        self.most, self.error, self.sizes = most, error, []

    def log_density(self, program: Any, batch: Any, values: Any, layout: Any) -> Any:
        self.sizes.append(len(values["z"]))
        if self.sizes[-1] > self.most:
            raise self.error
        return super().log_density(program, batch, values, layout)


OUT_OF_MEMORY = [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate")]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_out_of_memory_halves_the_chunk_without_changing_weights(
    error: RuntimeError, promised: Callable[[str], None]
) -> None:
    program = BernoulliDecoder(2)
    x = torch.bernoulli(torch.full((4, 6), 0.5))
    expected = log_weights(program.model, program.guide, x, 2500, seed=5)
    cramped = SmallMemoryBackend(300, error)
    found = log_weights(program.model, program.guide, x, 2500, chunk=1000, seed=5, backend=cramped)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert cramped.sizes[:4] == [1000, 500, 250, 250]
    with pytest.raises(RuntimeError) as caught:  # raised if a single particle does not fit
        log_weights(program.model, program.guide, x, 10, backend=SmallMemoryBackend(0, error))
    assert caught.value is error
    promised("out of memory while scoring: chunks are halved, 10,000 of 10,000 weights unchanged")


def test_other_errors_are_not_treated_as_out_of_memory() -> None:
    program = BernoulliDecoder(2)
    with pytest.raises(RuntimeError, match="shapes"):
        log_weights(
            program.model, program.guide, torch.zeros(2, 6), 10, backend=SmallMemoryBackend(0, RuntimeError("shapes"))
        )


def test_less_memory_gives_smaller_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    program = BernoulliDecoder(2)
    x = torch.bernoulli(torch.full((4, 6), 0.5))
    sizes = []
    for room in (10**6, 30):
        monkeypatch.setattr(chunks, "_max_particles_in_memory", lambda x, room=room: room)
        counted = SmallMemoryBackend(10**6, RuntimeError())
        log_weights(program.model, program.guide, x, 1000, backend=counted)
        sizes.append(max(counted.sizes))
    assert sizes == [1000, 30]


def test_compiled_reader_gives_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images in batches of 4, the last of 2, and 250 particles in blocks of 100: remainders run eagerly."""
    monkeypatch.setattr(chunks, "_MAX_ROWS", {"cpu": 400, "cuda": 400})
    program = BernoulliDecoder(2)
    backend = CompiledBackend()
    for x in torch.bernoulli(torch.full((10, 6), 0.5)).split(4):
        expected = log_weights(program.model, program.guide, x, 250, seed=5)
        found = log_weights(program.model, program.guide, x, 250, seed=5, backend=backend)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert not backend._refused
    assert len(backend._graphs) == 2


def test_terms_are_the_log_densities_of_their_names() -> None:
    program = LinearGaussian(2, variance_ratio=1.5)
    x = program.simulate(3)
    parts = log_weight_terms(program.model, program.guide, x, 20_000, seed=0)
    # E_q[log q - log p(z)] = KL(q || p(z)) in closed form; 4 s.e. of the mean, false alarms 6e-5 per image.
    mean, covariance = program.posterior_mean(x), program.covariance * 1.5
    rate = 0.5 * (covariance.trace() + (mean**2).sum(1) - 2 - covariance.logdet())
    sampled = parts.log_posterior - parts.log_prior
    assert ((sampled.mean(0) - rate).abs() < 4 * sampled.std(0) / 20_000**0.5).all()
    reduced = scores_from_terms(parts)
    assert reduced.elbo == pytest.approx(-(reduced.rate + reduced.distortion), abs=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.5, -1.0, 2.0])
def test_pixels_outside_the_support_are_rejected(bad: float) -> None:
    program = BernoulliDecoder(1)
    x = torch.zeros(5, 6)
    x[3, 2] = bad
    with pytest.raises(ValueError, match=r"image 3|outside the support of its Bernoulli") as caught:
        log_weights(program.model, program.guide, x, 4)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("arguments", [{"num_samples": 0}, {"num_samples": 3, "chunk": 0}])
def test_counts_below_one_are_rejected(arguments: dict[str, int]) -> None:
    program = BernoulliDecoder(1)
    with pytest.raises(ValueError, match="is 0; it must be at least 1"):
        log_weights(program.model, program.guide, torch.zeros(2, 6), **arguments)
