"""The parts of a program: densities that integrate to one, sampling that agrees with them, any leading dimensions."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from test_objectives import images, small_vae
from torch import nn
from torch.nn.functional import softplus

from pyro_vae.model import likelihoods, nets, priors

PRIORS = {"standard": priors.StandardNormal, "mixture": lambda latent_dim: priors.GaussianMixture(latent_dim, 3)}


def spread(prior: nn.Module) -> nn.Module:
    """Move the parameters from their start, so that nothing is tested at a special point."""
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return prior


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("latent_dim", [1, 2])
def test_a_prior_integrates_to_one_on_a_grid(name: str, latent_dim: int) -> None:
    prior = spread(PRIORS[name](latent_dim))
    axis = torch.linspace(-12, 12, 801)
    grid = torch.cartesian_prod(*[axis] * latent_dim).view(-1, latent_dim)
    integral = prior().log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** latent_dim
    assert integral.item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", PRIORS)
def test_a_prior_integrates_to_one_by_monte_carlo(name: str) -> None:
    """Importance sampling in 5 dimensions from a wider Student-t; 4 s.e., false alarms 6e-5."""
    prior = spread(PRIORS[name](5))
    proposal = dist.StudentT(5.0, torch.zeros(5), 2.0).to_event(1)
    z = proposal.sample((100_000,))
    ratio = (prior().log_prob(z) - proposal.log_prob(z)).exp()
    assert (ratio.mean() - 1).abs() < 4 * ratio.std() / math.sqrt(len(z))


@pytest.mark.parametrize("name", PRIORS)
def test_samples_of_a_prior_follow_its_density(name: str) -> None:
    """Means and second moments of samples against importance sampling; 4 s.e. of the difference, 6 comparisons."""
    prior = spread(PRIORS[name](2))
    z = prior().sample((100_000,))
    proposal = dist.StudentT(5.0, torch.zeros(2), 2.0).to_event(1)
    other = proposal.sample((100_000,))
    ratio = (prior().log_prob(other) - proposal.log_prob(other)).exp().unsqueeze(1)
    for power in (1, 2):
        found, expected = z**power, ratio * other**power
        error = ((found.var(0) + expected.var(0)) / len(z)).sqrt()
        assert ((found.mean(0) - expected.mean(0)).abs() < 4 * error).all()


@pytest.mark.parametrize("name", PRIORS)
def test_a_prior_round_trips_through_its_state(name: str) -> None:
    prior, other = spread(PRIORS[name](3)), PRIORS[name](3)
    z = torch.randn(7, 3)
    other.load_state_dict(prior.state_dict())
    assert torch.equal(prior().log_prob(z), other().log_prob(z))
    prior().log_prob(z).sum().backward() if list(prior.parameters()) else None
    assert all(p.grad.abs().sum() > 0 for p in prior.parameters())


def test_a_mixture_of_equal_components_is_one_gaussian() -> None:
    mixture = priors.GaussianMixture(3, 4)
    with torch.no_grad():
        mixture.loc.copy_(mixture.loc[:1].expand(4, 3))
        mixture.raw_scale.copy_(torch.tensor([0.1, 0.5, 2.0]).expand(4, 3))
        mixture.logits.copy_(torch.randn(4))
    z = torch.randn(20, 3)
    one = dist.Normal(mixture.loc[0], softplus(mixture.raw_scale[0])).to_event(1)
    torch.testing.assert_close(mixture().log_prob(z), one.log_prob(z))


def test_a_mixture_does_not_depend_on_the_order_of_its_components() -> None:
    mixture, turned = spread(priors.GaussianMixture(2, 5)), priors.GaussianMixture(2, 5)
    turned.load_state_dict({name: value.roll(2, 0) for name, value in mixture.state_dict().items()})
    z = torch.randn(20, 2)
    torch.testing.assert_close(turned().log_prob(z), mixture().log_prob(z))


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
    vae.prior = priors.GaussianMixture(2, 1)
    with torch.no_grad():
        vae.prior.loc.fill_(40.0)
    trace = pyro.poutine.trace(vae.model).get_trace(images(50))
    assert trace.nodes["z"]["value"].mean().item() == pytest.approx(40, abs=1)
