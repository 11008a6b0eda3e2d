"""The aggregate posterior: ELBO surgery against direct sums, and its limits."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from helpers.oracles import LinearGaussian
from helpers.programs import images, small_vae, two_layer
from torch import Tensor

from pyro_vae.evaluate import elbo_surgery
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
