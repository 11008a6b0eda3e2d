"""The parts of a program: densities that integrate to one, sampling that agrees with them, any leading dimensions."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from test_objectives import images, small_vae
from torch import nn

from pyro_vae.model import likelihoods, nets
from pyro_vae.model.priors.mixture import GaussianMixture


def test_a_bernoulli_likelihood_sums_to_one() -> None:
    likelihood = likelihoods.Bernoulli(nets.MLP([2, 5, 6]), (2, 3), torch.rand(2, 3))
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 6).view(-1, 1, 2, 3)
    total = likelihood(torch.randn(4, 2)).log_prob(every).exp().sum(0)
    torch.testing.assert_close(total, torch.ones(4))


def test_a_bernoulli_likelihood_starts_at_the_mean_image() -> None:
    mean_image = torch.tensor([[0.0, 0.2], [0.9, 1.0]])
    likelihood = likelihoods.Bernoulli(nets.MLP([2, 5, 4]), (2, 2), mean_image)
    nn.init.zeros_(likelihood.net.last.weight)
    expected = mean_image.clamp(1e-3, 1 - 1e-3)
    torch.testing.assert_close(likelihood(torch.randn(2)).mean, expected)


def test_a_gaussian_likelihood_has_its_moments_and_its_floor() -> None:
    mean_image = torch.tensor([[0.0, 0.2], [0.9, 1.0]])
    likelihood = likelihoods.Gaussian(nets.MLP([2, 5, 8]), (2, 2), mean_image)
    last = likelihood.net.last
    nn.init.zeros_(last.weight)
    start = likelihood(torch.randn(3, 2))
    torch.testing.assert_close(start.mean, mean_image.expand(3, 2, 2))
    torch.testing.assert_close(start.variance.sqrt(), torch.full((3, 2, 2), 0.25 + 1 / 256))
    with torch.no_grad():
        last.bias.fill_(-1e4)  # as far as the scale can fall
    assert likelihood(torch.randn(2)).variance.sqrt().min().item() == pytest.approx(1 / 256)
    with torch.no_grad():
        last.bias.normal_()
    axis = torch.linspace(-20, 20, 40_001)
    density = likelihood(torch.randn(2)).base_dist.log_prob(axis.view(-1, 1, 1)).exp()
    torch.testing.assert_close(density.sum(0) * (axis[1] - axis[0]), torch.ones(2, 2), rtol=1e-3, atol=0)


@pytest.mark.parametrize("leading", [(), (3,), (4, 3)])
def test_parts_take_any_leading_dimensions(leading: tuple[int, ...]) -> None:
    vae = small_vae()
    x, z = torch.rand(*leading, 3, 2), torch.randn(*leading, 2)
    one_by_one = [vae.posterior(image).mean for image in x.view(-1, 3, 2)]
    torch.testing.assert_close(vae.posterior(x).mean.view(-1, 2), torch.stack(one_by_one))
    one_by_one = [vae.likelihood(code).mean for code in z.view(-1, 2)]
    torch.testing.assert_close(vae.likelihood(z).mean.view(-1, 3, 2), torch.stack(one_by_one))


def test_the_rate_of_a_mean_field_posterior_is_its_analytic_kl() -> None:
    vae, x = small_vae(), images(3)
    q = vae.posterior(x)
    analytic = torch.distributions.kl_divergence(q, vae.prior().expand(q.batch_shape))
    z = q.sample((50_000,))
    sampled = q.log_prob(z) - vae.prior().log_prob(z)
    assert ((sampled.mean(0) - analytic).abs() < 4 * sampled.std(0) / math.sqrt(50_000)).all()  # 2e-4 in all


def test_images_of_another_shape_are_refused_in_one_line() -> None:
    vae = small_vae()
    with pytest.raises(ValueError, match=r"x has shape \(5, 6\); the model expects \(\*, 3, 2\)"):
        vae.guide(torch.zeros(5, 6))


def test_the_prior_stands_in_one_line_of_the_program() -> None:
    """What the README shows as a swap: the model samples z from prior(), and from nothing else."""
    vae = small_vae()
    vae.prior = GaussianMixture(2, 1)
    with torch.no_grad():
        vae.prior.loc.fill_(40.0)
    trace = pyro.poutine.trace(vae.model).get_trace(images(50))
    assert trace.nodes["z"]["value"].mean().item() == pytest.approx(40, abs=1)
