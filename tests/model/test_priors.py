"""Every prior by name: it integrates to one, its samples follow its density, and it trains.

Closed forms of specific priors are at the end.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.agreement import assert_integrates_to_one_by_monte_carlo, assert_samples_follow, integral
from pyro import poutine
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_vae import config, data
from pyro_vae.config import components, programs
from pyro_vae.model import nets, posteriors
from pyro_vae.model.distributions.diagonal_normals import DiagonalNormalComponents
from pyro_vae.model.priors.lars import LARS
from pyro_vae.model.priors.mixture import GaussianMixture
from pyro_vae.model.priors.vamp import VampPrior

NAMES = sorted(components.PRIORS.keys() - {"flat"})  # it is not a distribution: see test_autoencoder.py


def posterior(latent_dim: int) -> nn.Module:
    return posteriors.MeanField(nets.Dense((2, 2), 6, depth=1).encoder, latent_dim)


def prior_of(name: str, latent_dim: int) -> nn.Module:
    """Build a prior in evaluation mode, away from its initialization, which may be a special case."""
    images = torch.randint(0, 256, (300, 2, 2), dtype=torch.uint8)
    prior = components.construct(
        components.PRIORS[name], latent_dim=latent_dim, images=images, posterior=posterior(latent_dim)
    )
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3 / math.sqrt(parameter.shape[-1]))
    return prior.to(torch.get_default_device()).eval()


@pytest.mark.parametrize("latent_dim", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_prior_integrates_to_one_on_a_grid(name: str, latent_dim: int) -> None:
    if name == "realnvp" and latent_dim == 1:
        with pytest.raises(ValueError, match="2 or more"):
            prior_of(name, latent_dim)
        return
    assert integral(prior_of(name, latent_dim)(), latent_dim) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_prior_integrates_to_one_by_monte_carlo(name: str) -> None:
    """Five dimensions; false alarms 6e-5 per name."""
    assert_integrates_to_one_by_monte_carlo(prior_of(name, 5)(), 5)


@pytest.mark.parametrize("name", NAMES)
def test_samples_of_a_prior_follow_its_density(name: str) -> None:
    """False alarms 4e-4 per name."""
    prior = prior_of(name, 2)
    assert_samples_follow(prior(), draws(prior))


def draws(prior: nn.Module, number: int = 20_000) -> Tensor:
    with torch.no_grad(), pyro.plate("data", number):
        return pyro.sample("z", prior())


@pytest.mark.parametrize("name", NAMES)
def test_prior_works_under_a_particle_plate_and_every_parameter_trains(name: str) -> None:
    prior = prior_of(name, 3)
    z = torch.randn(5, 7, 3)

    def model() -> None:
        with pyro.plate("particles", 5, dim=-2), pyro.plate("data", 7, dim=-1):
            pyro.sample("z", prior(), obs=z)

    trace = poutine.trace(model).get_trace()
    trace.compute_log_prob()
    found = trace.nodes["z"]["log_prob"]
    expected = prior().log_prob(z.view(35, 3)).view(5, 7)
    torch.testing.assert_close(found, expected)
    if not list(prior.parameters()):
        return
    found.sum().backward()
    gradients = [p.grad for p in prior.parameters()]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize("name", NAMES)
def test_prior_round_trips_through_its_state(name: str) -> None:
    prior, other = prior_of(name, 3), prior_of(name, 3)
    other.load_state_dict(prior.state_dict())
    z = torch.randn(7, 3)
    assert torch.equal(prior().log_prob(z), other().log_prob(z))


def test_prior_can_be_registered_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one entry in the table the configuration accepts the name, and the program samples from the prior."""

    class Far(nn.Module):
        def forward(self) -> dist.Distribution:
            return dist.Normal(torch.full((3,), 40.0), 1.0).to_event(1)

    monkeypatch.setitem(components.PRIORS, "far", Far)
    settings = config.Config(prior="far", latent_dim=3, device="cpu")
    with torch.device("cpu"):
        images = data.load("digits", settings.data_root)
        program = programs.build(settings, images)
        trace = poutine.trace(program.model).get_trace(torch.zeros(50, 8, 8))
    assert trace.nodes["z"]["value"].mean().item() == pytest.approx(40, abs=1)


def test_vamp_prior_of_one_pseudo_input_is_its_gaussian() -> None:
    q, image = posterior(3), torch.rand(1, 2, 2)
    prior, z = VampPrior(q, image), torch.randn(20, 3)
    torch.testing.assert_close(prior().log_prob(z), q(image.clamp(0.02, 0.98)).log_prob(z))


def test_vamp_prior_draws_its_components_uniformly() -> None:
    """Eight well separated components, 20,000 draws: each count within 5 s.e., false alarms 5e-6."""

    class Places(nn.Module):
        def forward(self, x: Tensor) -> dist.Distribution:
            return dist.Normal(100 * torch.arange(8.0).unsqueeze(1), 1.0).to_event(1)

    prior = VampPrior(Places(), torch.rand(8, 2, 2))
    counts = torch.bincount((draws(prior).squeeze(1) / 100).round().long(), minlength=8)
    assert ((counts - 2500).abs() < 5 * math.sqrt(20_000 * 7 / 64)).all()


def test_mixture_of_equal_components_is_one_gaussian() -> None:
    mixture = GaussianMixture(3, 4)
    with torch.no_grad():
        mixture.loc.copy_(mixture.loc[:1].expand(4, 3))
        mixture.raw_scale.copy_(torch.tensor([0.1, 0.5, 2.0]).expand(4, 3))
        mixture.logits.copy_(torch.randn(4))
    z = torch.randn(20, 3)
    one = dist.Normal(mixture.loc[0], softplus(mixture.raw_scale[0])).to_event(1)
    torch.testing.assert_close(mixture().log_prob(z), one.log_prob(z))


@pytest.mark.parametrize("name", ["mixture", "vamp"])
def test_order_of_components_does_not_matter(name: str) -> None:
    """To 1e-12. Permuting only the locations does change the density."""
    prior, z = prior_of(name, 3), 2 * torch.randn(50, 3)
    own = list(prior.parameters(recurse=False))
    order = torch.randperm(len(own[0]))
    before = prior().log_prob(z)
    with torch.no_grad():
        for parameter in own:
            parameter.copy_(parameter[order])
        torch.testing.assert_close(prior().log_prob(z), before, rtol=0, atol=1e-12)
        if name == "mixture":
            prior.loc.copy_(prior.loc[order])
            assert ((prior().log_prob(z) - before).abs() > 1e-6).all()


def test_components_are_scored_as_by_pyro() -> None:
    """Matrix products give the same as broadcasting, also in the tails, for narrow components and in float32."""
    loc, scale = 3 * torch.randn(11, 5), 0.01 + torch.rand(11, 5)
    weights = dist.Categorical(logits=torch.randn(11))
    plain = dist.MixtureSameFamily(weights, dist.Normal(loc, scale).to_event(1))
    z = torch.cat([torch.randn(30, 5), loc + scale * torch.randn(11, 5), 50 * torch.randn(5, 5)])
    found = dist.MixtureSameFamily(weights, DiagonalNormalComponents(loc, scale)).log_prob(z)
    torch.testing.assert_close(found, plain.log_prob(z), rtol=1e-9, atol=1e-9)
    single = dist.MixtureSameFamily(weights, DiagonalNormalComponents(loc.float(), scale.float())).log_prob(z.float())
    exact = dist.MixtureSameFamily(
        weights, dist.Normal(loc.float().double(), scale.float().double()).to_event(1)
    ).log_prob(z.float().double())
    torch.testing.assert_close(single.double(), exact, rtol=1e-6, atol=1e-5)


def lars(dim: int = 2) -> LARS:
    prior = LARS(dim, truncation=7, hidden_dim=8)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return prior


def test_resampled_prior_trains_on_its_reported_density() -> None:
    """A projected gradient of log p(z) with Z from 1,024 new points, mean of 400, against finite differences.

    Its estimate of log Z has a bias of -var(a) / (2 Z^2 1024), of the order of 1e-3, and so has its gradient: 4 s.e.
    and 2e-3, false alarms 6e-5.
    """
    prior, z = lars(), torch.randn(20, 2)
    parameters = list(prior.parameters())
    direction = [torch.randn_like(p) for p in parameters]
    found = []
    for _ in range(400):
        gradient = torch.autograd.grad(prior().log_prob(z).mean(), parameters)
        found.append(sum((g * d).sum() for g, d in zip(gradient, direction, strict=True)))
    ends = []
    prior.eval()
    for step in (1e-4, -2e-4):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(step * d)
            ends.append(prior().log_prob(z).mean())
    expected, found = (ends[0] - ends[1]) / 2e-4, torch.stack(found)
    assert (found.mean() - expected).abs() < 4 * found.std() / 20 + 2e-3


@pytest.mark.parametrize("dim", [2, 50])
def test_normalizer_of_a_resampled_prior_is_accurate(dim: int) -> None:
    """Against 2 million independent points: within a hundredth of a nat, as documented, plus 4 s.e. of these points."""
    prior = lars(dim).eval()
    with torch.no_grad():
        acceptance = torch.cat([prior.log_acceptance(torch.randn(100_000, dim)).exp() for _ in range(20)])
    z, error = acceptance.mean(), acceptance.std() / math.sqrt(len(acceptance))
    assert (prior.log_normalizer() - z.log()).abs() < 0.01 + 4 * error / z


def test_resampled_prior_of_one_proposal_is_rejected() -> None:
    with pytest.raises(ValueError, match="truncation is 1"):
        LARS(2, truncation=1)


def test_resampled_prior_with_constant_acceptance_is_normal() -> None:
    prior, z = lars().eval(), torch.randn(20, 2)
    with torch.no_grad():
        for parameter in prior.net[-1].parameters():
            parameter.zero_()
    torch.testing.assert_close(prior().log_prob(z), dist.Normal(0.0, 1.0).log_prob(z).sum(1))
