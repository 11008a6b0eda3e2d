"""Every likelihood by name: normalization, moments, gradients and support."""

from __future__ import annotations

import math
from functools import partial

import pyro.distributions as dist
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor, nn

from pyro_vae.config import components
from pyro_vae.model import VAE, nets, posteriors
from pyro_vae.model.distributions.pixels import ContinuousBernoulli, CrossEntropy, DiscretizedLogistic
from pyro_vae.model.priors.standard import StandardNormal
from pyro_vae.trace import check_support, describe

# Likelihoods of counts, and of dependent pixels, have separate test files.
NAMES = sorted(components.LIKELIHOODS.keys() - {"pixelcnn", "poisson", "negative-binomial"})
LEVELS = ("categorical", "logistic-mixture")
DENSITIES = ("continuous-bernoulli", "gaussian", "isotropic-gaussian")
SHAPE = (2, 3)


def likelihood_of(name: str, spread: float = 1.0) -> nn.Module:
    """Build a likelihood for 2x3 images, away from its initialization."""
    images = torch.randint(0, 256, (50, *SHAPE), dtype=torch.uint8)
    part = components.LIKELIHOODS[name](partial(nets.Dense(SHAPE, 4, depth=1).decoder, 2), images)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return part.to(torch.get_default_device())


def values_of(name: str, number: int) -> Tensor:
    """Draw images from the support."""
    if name == "bernoulli":
        return torch.bernoulli(torch.full((number, *SHAPE), 0.5))
    if name in LEVELS:
        return torch.randint(0, 256, (number, *SHAPE)) / 255
    return torch.rand(number, *SHAPE)


def pixel(likelihood: nn.Module, z: Tensor) -> dist.Distribution:
    """Return the distribution of single pixels, batch shape (..., 2, 3)."""
    return likelihood(z).base_dist


@pytest.mark.parametrize("spread", [1.0, 30.0])
@pytest.mark.parametrize("name", ["bernoulli", *LEVELS])
def test_probability_sums_to_one(name: str, spread: float) -> None:
    """Also far from the initialization, where a saturated sigmoid would lose precision."""
    likelihood = likelihood_of(name, spread)
    levels = torch.arange(2.0) if name == "bernoulli" else torch.arange(256) / 255
    total = pixel(likelihood, torch.randn(4, 2)).log_prob(levels.view(-1, 1, 1, 1)).exp().sum(0)
    torch.testing.assert_close(total, torch.ones(4, *SHAPE))


@pytest.mark.parametrize("spread", [1.0, 30.0])
@pytest.mark.parametrize("name", DENSITIES)
def test_density_integrates_to_one(name: str, spread: float) -> None:
    likelihood, z = likelihood_of(name, spread), torch.randn(2)
    bounds = (0.0, 1.0) if name == "continuous-bernoulli" else (-math.inf, math.inf)
    q = pixel(likelihood, z)
    for row in range(SHAPE[0]):
        for column in range(SHAPE[1]):

            def density(value: float, row: int = row, column: int = column) -> float:
                return float(q.log_prob(torch.tensor(value))[row, column].detach().exp())

            centre = float(q.mean[row, column].detach())
            halves = ((bounds[0], centre), (centre, bounds[1]))
            total = sum(quad(density, *half, epsabs=1e-9, limit=200)[0] for half in halves)
            assert total == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("spread", [1.0, 30.0])
def test_cross_entropy_does_not_integrate_to_one(spread: float) -> None:
    """It lacks the constant of the continuous Bernoulli, l / tanh(l / 2) for the logit l, which is 2 or more."""
    likelihood, z, x = likelihood_of("cross-entropy", spread), torch.randn(4, 2), values_of("cross-entropy", 4)
    loss = pixel(likelihood, z)
    log_constant = (loss.logits / (loss.logits / 2).tanh()).log()
    assert (log_constant >= math.log(2)).all()
    torch.testing.assert_close(
        loss.log_prob(x) + log_constant, ContinuousBernoulli(loss.logits).log_prob(x), rtol=1e-6, atol=1e-6
    )
    for logit, constant in zip(
        loss.logits[0].flatten().tolist(), log_constant[0].exp().flatten().tolist(), strict=True
    ):
        one = CrossEntropy(logits=torch.tensor(logit))
        total, _ = quad(lambda value, one=one: float(one.log_prob(torch.tensor(value)).exp()), 0, 1, epsabs=1e-9)
        assert constant * total == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_log_density_of_an_image_is_the_sum_over_its_pixels(name: str) -> None:
    likelihood, z, x = likelihood_of(name), torch.randn(5, 1, 2), values_of(name, 4)
    found = likelihood(z).log_prob(x)
    torch.testing.assert_close(found, pixel(likelihood, z).log_prob(x).sum((-2, -1)))
    assert found.shape == (5, 4)


@pytest.mark.parametrize("name", NAMES)
def test_moments_match_the_samples(name: str) -> None:
    """Mean and variance of six pixels at 4.5 s.e., false alarms 8e-5 per name."""
    q = likelihood_of(name)(torch.randn(2))
    x = q.sample((20_000,))
    squares = (x - q.mean).square()
    for values, expected in ((x, q.mean), (squares, q.variance)):
        error = values.std(0) / math.sqrt(len(x))
        assert ((values.mean(0) - expected).abs() < 4.5 * error + 1e-9).all()


@pytest.mark.parametrize("name", NAMES)
def test_gradients_match_finite_differences(name: str) -> None:
    likelihood, x = likelihood_of(name, 0.5).double(), values_of(name, 3).double()
    names, values = zip(*((n, p) for n, p in likelihood.named_parameters() if n != "bias"), strict=True)

    def score(z: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(likelihood, dict(zip(names, parameters, strict=True)), z).log_prob(x)

    z = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(score, (z, *values), fast_mode=True)


@pytest.mark.parametrize(
    ("name", "outside"),
    [
        ("bernoulli", 0.5),
        ("continuous-bernoulli", 1.01),
        ("cross-entropy", 1.01),
        ("cross-entropy", -0.01),
        ("categorical", 0.5),
        ("categorical", -1 / 255),
        ("logistic-mixture", 0.5 / 255),
        ("logistic-mixture", 256 / 255),
    ],
)
def test_values_outside_the_support_are_rejected(name: str, outside: float) -> None:
    vae = vae_of(name)
    x = values_of(name, 3)
    check_support(vae.model, vae.guide, x)
    x[1, 0, 2] = outside
    with pytest.raises(ValueError, match="outside the support"):
        check_support(vae.model, vae.guide, x)


@pytest.mark.parametrize("name", NAMES)
def test_support_determines_whether_it_is_a_density(name: str) -> None:
    vae = vae_of(name)
    assert (describe(vae.model, vae.guide, values_of(name, 1)).observes == "density") == (name in DENSITIES)


def vae_of(name: str) -> VAE:
    posterior = posteriors.MeanField(nets.Dense(SHAPE, 4, depth=1).encoder, 2)
    return VAE(StandardNormal(2), likelihood_of(name), posterior)


# Initialization, with a decoder that ignores z.

IMAGES = torch.tensor([[[0, 51], [230, 255]], [[0, 51], [229, 255]]], dtype=torch.uint8)
MEAN = IMAGES.double().mean(0) / 255


def start(name: str) -> dist.Distribution:
    images = IMAGES.to(torch.get_default_device())
    likelihood = components.LIKELIHOODS[name](partial(nets.Dense((2, 2), 0, depth=0).decoder, 2), images)
    nn.init.zeros_(likelihood.net[0][0].weight)
    return likelihood(torch.randn(3, 2))


@pytest.mark.parametrize(
    ("name", "low"),
    [
        ("bernoulli", 1e-3),
        ("cross-entropy", 1e-3),
        ("continuous-bernoulli", 0.02),
        ("gaussian", 0),
        ("isotropic-gaussian", 0),
    ],
)
def test_initial_mean_is_the_mean_image(name: str, low: float) -> None:
    expected = MEAN.clamp(low, 1 - low).expand(3, 2, 2)
    torch.testing.assert_close(start(name).mean, expected, check_dtype=False, check_device=False, rtol=1e-4, atol=1e-6)


def test_categorical_starts_at_the_frequencies_of_each_pixel() -> None:
    expected = torch.full((2, 2, 256), 0.5)
    for image in IMAGES:
        expected.scatter_add_(-1, image.long().unsqueeze(-1).to(expected.device), torch.ones(2, 2, 1))
    found = start("categorical").base_dist.logits.exp()
    torch.testing.assert_close(found, (expected / expected.sum(-1, keepdim=True)).expand_as(found))


def test_logistic_mixture_starts_at_the_quantiles_of_each_pixel() -> None:
    """Two images: the outer two of five components are near the darker and the lighter one, the third is between."""
    loc = start("logistic-mixture").base_dist.component_distribution.loc[0]
    first, second = IMAGES.to(loc) / 255
    for component, level in enumerate((0.1, 0.3, 0.5, 0.7, 0.9)):
        darker, lighter = torch.minimum(first, second), torch.maximum(first, second)
        torch.testing.assert_close(loc[..., component], darker + level * (lighter - darker), rtol=1e-5, atol=1e-6)


def test_gaussian_likelihood_starts_wide_and_has_a_floor() -> None:
    torch.testing.assert_close(start("gaussian").variance.sqrt(), torch.full((3, 2, 2), 0.25 + 1 / 256))
    likelihood = likelihood_of("gaussian")
    with torch.no_grad():
        likelihood.bias.fill_(-1e4)  # far below the floor
    assert likelihood(torch.randn(2)).variance.sqrt().min().item() == pytest.approx(1 / 256)


# Closed forms


def test_wide_discretized_logistic_approaches_the_logistic_density() -> None:
    """Probability of an interval of one level divided by its width, between the end levels."""
    levels = torch.arange(1, 255) / 255
    found = DiscretizedLogistic(torch.tensor(0.4), torch.tensor(2.0)).log_prob(levels) + math.log(255)
    torch.testing.assert_close(found, dist.Logistic(0.4, 2.0).log_prob(levels), rtol=1e-5, atol=1e-5)


def test_discretized_logistic_is_accurate_in_the_tails() -> None:
    """Level 200 at loc 0 and scale 1e-3: exp(-a) (1 - exp(-1 / 0.255)), a = 199.5 / 0.255 scales away."""
    found = DiscretizedLogistic(torch.tensor(0.0), torch.tensor(1e-3)).log_prob(torch.tensor(200 / 255))
    assert found.item() == pytest.approx(-199.5 / 0.255 + math.log1p(-math.exp(-1 / 0.255)), rel=1e-5)


def test_continuous_bernoulli_is_uniform_at_logit_zero_and_smooth() -> None:
    """Its Taylor series at small logits, and torch's implementation where that is accurate."""
    logits = torch.linspace(-0.2, 0.2, 401)
    x = torch.rand(401)
    found = ContinuousBernoulli(logits).log_prob(x)
    exact = x * logits - (logits / 2 + logits.square() / 24 - logits**4 / 2880)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-6)
    logits = torch.linspace(-8, 8, 33)
    torch.testing.assert_close(
        ContinuousBernoulli(logits).log_prob(x[:33]),
        dist.ContinuousBernoulli(logits=logits).log_prob(x[:33]),
        rtol=1e-5,
        atol=1e-5,
    )


def test_initialization_is_exact_beyond_the_integers_of_float32() -> None:
    """Levels 3 and 252 alternate, 140,001 images: their sum exceeds 2^24, above which float32 skips integers."""
    number = 140_001
    images = torch.where(torch.arange(number) % 2 == 0, 3, 252).to(torch.uint8).view(-1, 1, 1).expand(-1, *SHAPE)
    decoder = partial(nets.Dense(SHAPE, 4, depth=1).decoder, 2)
    mean = (3 * (number // 2 + 1) + 252 * (number // 2)) / number / 255
    spread = math.sqrt(((3 / 255 - mean) ** 2 * (number // 2 + 1) + (252 / 255 - mean) ** 2 * (number // 2)) / number)
    part = components.LIKELIHOODS["isotropic-gaussian"](decoder, images)
    torch.testing.assert_close(part.bias.detach(), torch.full((1, *SHAPE), mean).to(part.bias), rtol=1e-7, atol=0)
    assert math.log1p(part.raw_scale.exp().item()) == pytest.approx(spread, rel=1e-7)
