"""Free bits and the total correlation: floors, closed forms, and the estimate of the aggregate posterior."""

from __future__ import annotations

from itertools import combinations

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.oracles import RowsAlone
from helpers.programs import images, small_vae, two_layer
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vae.infer import ELBO, BetaTCVAE, FreeBits
from pyro_vae.infer.objectives.particles import draw_particles
from pyro_vae.model import VAE, nets, posteriors
from pyro_vae.model.priors.mixture import GaussianMixture


def gradients(vae: VAE, loss: Tensor) -> dict[str, Tensor]:
    vae.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in vae.named_parameters() if p.grad is not None}


def test_free_bits_floor_the_rate_of_each_unit() -> None:
    """Units with rates of about 0.02 and 8 (closed form) and a floor of 1: one costs 1, the other its rate."""
    vae, x = small_vae(), images(6)
    with torch.no_grad():
        last = vae.posterior.net[1][-1]
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0.2, 4.0, 0.0, 0.0]))
    rates = kl_divergence(vae.posterior(x).base_dist, vae.prior().base_dist).mean(0)
    torch.testing.assert_close(rates, torch.tensor([0.02, 8.0]))
    pyro.set_rng_seed(1)
    found, elbo = FreeBits(20_000, free_bits=1.0).bounds(vae.model, vae.guide, x)
    # With the same particles the difference is 1 minus the sampled rate of the first unit, 0.02 with s.d. 0.2: 4 s.e.
    assert (elbo - found).mean().item() == pytest.approx(1 - rates[0].item(), abs=4 * 0.2 / 120_000**0.5)


def test_free_bits_above_the_floor_equal_the_elbo() -> None:
    vae, x = small_vae(), images(6)
    for floor in (0.0, 1e-3):
        with torch.no_grad():
            vae.posterior.net[1][-1].bias.fill_(1.5)
        pyro.set_rng_seed(1)
        found, elbo = FreeBits(50, floor).bounds(vae.model, vae.guide, x)
        torch.testing.assert_close(found.mean(), elbo.mean())


def test_rate_below_the_floor_has_no_gradient() -> None:
    vae, x = small_vae(), images(6)

    def loss(high: bool) -> Tensor:
        pyro.set_rng_seed(1)
        particles = draw_particles(vae.model, vae.guide, x, 3)
        return FreeBits(3, 1e3).per_image(particles).sum() if high else particles.log_likelihood.mean(0).sum()

    torch.testing.assert_close(gradients(vae, loss(True)), gradients(vae, loss(False)))


def test_prior_that_does_not_factorize_is_one_group() -> None:
    """Its floor is the sum of the floors of its two units."""
    vae, x = small_vae(), images(6)
    vae.prior = GaussianMixture(2, 3)
    particles = draw_particles(vae.model, vae.guide, x, 50)
    rate = particles.weighted_rate.mean()
    likelihood = particles.log_likelihood.mean(0)
    torch.testing.assert_close(FreeBits(50, 0.0).per_image(particles), likelihood - rate)
    torch.testing.assert_close(FreeBits(50, 1e3).per_image(particles), likelihood - 2e3)


def test_free_bits_of_two_layers_floor_each_layer() -> None:
    program, x = two_layer(), images(6)
    particles = draw_particles(program.model, program.guide, x, 5)
    found = FreeBits(5, 1e3).per_image(particles)
    # z1 given z2 and z2 are sites with one unit each.
    torch.testing.assert_close(found, particles.log_likelihood.mean(0) - 2e3)


@pytest.mark.parametrize("batch", [1, 5])
def test_free_bits_support_mixed_layouts(batch: int) -> None:
    """A decoder that takes only rows with a guide that takes particles: with a floor of 0, the ELBO."""
    particles = draw_particles(RowsAlone.model, RowsAlone.guide, images(batch), 50)
    found = FreeBits(50, 0.0).per_image(particles)
    torch.testing.assert_close(found.mean(), particles.log_w.mean())


# Total correlation


def test_total_correlation_of_the_whole_data_set_is_exact() -> None:
    """The batch is the data set: log q(z) - sum_u log q(z_u) of the mixture of its posteriors."""
    vae, x = small_vae(), images(5)
    particles = draw_particles(vae.model, vae.guide, x, 7)
    found = BetaTCVAE(7, num_images=5).total_correlation(particles)
    q, weights = vae.posterior(x), dist.Categorical(logits=torch.zeros(5))
    (z,) = particles.q.values.values()
    joint = dist.MixtureSameFamily(weights, q).log_prob(z)
    alone = [
        dist.MixtureSameFamily(weights, dist.Normal(q.base_dist.loc[:, u], q.base_dist.scale[:, u])).log_prob(z[..., u])
        for u in range(2)
    ]
    torch.testing.assert_close(found, joint - sum(alone), check_dtype=False)


def test_aggregate_posterior_is_unbiased_over_batches() -> None:
    """The densities of every batch of 3 of 5 images that contains the first average to that of all, at the same z."""
    vae, everything = small_vae(), images(5)
    z, q = torch.randn(2), vae.posterior(everything)
    exact = q.log_prob(z).exp().mean()
    objective = BetaTCVAE(num_images=5)
    found = [
        (vae.posterior(everything[[0, *others]]).log_prob(z) + objective.log_stratified_weights(3)[0]).exp().sum()
        for others in combinations(range(1, 5), 2)
    ]
    torch.testing.assert_close(torch.stack(found).mean(), exact)


def test_beta_weights_the_total_correlation() -> None:
    vae, x = small_vae(), images(5)
    particles = draw_particles(vae.model, vae.guide, x, 4)
    elbo = ELBO(4).per_image(particles)
    one, four = (BetaTCVAE(4, beta, num_images=20) for beta in (1.0, 4.0))
    torch.testing.assert_close(one.per_image(particles), elbo)
    correlation = four.total_correlation(particles).mean(0)
    torch.testing.assert_close(four.per_image(particles), elbo - 3 * correlation)
    pyro.set_rng_seed(1)
    _, reported = four.bounds(vae.model, vae.guide, x)
    pyro.set_rng_seed(1)
    torch.testing.assert_close(reported, ELBO(4).bounds(vae.model, vae.guide, x)[1])


def test_total_correlation_of_one_image_is_zero() -> None:
    """The last batch of an epoch may be a single image."""
    vae = small_vae()
    particles = draw_particles(vae.model, vae.guide, images(1), 4)
    found = BetaTCVAE(4, 4.0, num_images=20).total_correlation(particles)
    torch.testing.assert_close(found, torch.zeros_like(found))


def test_posterior_that_does_not_factorize_is_rejected() -> None:
    x = images(4)
    deep, full = two_layer(), small_vae()
    full.posterior = posteriors.FullRank(nets.Dense((3, 2), 8, depth=1).encoder, 2)
    for program in (deep, full):
        with pytest.raises(ValueError, match="factorized Gaussian posterior"):
            BetaTCVAE(num_images=20).loss(program.model, program.guide, x)
