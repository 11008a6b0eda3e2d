"""The mixture over the channels of a color pixel: sums over all colors, the formulas of the paper, and draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import product

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import chisquare, logistic
from torch import Tensor, nn

from pyro_vae.model import VAE, nets, posteriors
from pyro_vae.model.distributions import pixels
from pyro_vae.model.distributions.colors import ColorLogisticMixture
from pyro_vae.model.distributions.pixels import DiscretizedLogistic
from pyro_vae.model.likelihoods import LogisticMixture
from pyro_vae.model.priors.standard import StandardNormal
from pyro_vae.trace import check_support, describe


def mixture_of(
    num_components: int, shape: Sequence[int] = (1, 1), leading: Sequence[int] = (), scale: float = 0.1
) -> ColorLogisticMixture:
    """Return a mixture with random parameters, including locations outside [0, 1]."""
    channels = (*leading, 3, *shape, num_components)
    return ColorLogisticMixture(
        torch.randn(*leading, *shape, num_components),
        0.5 + 0.5 * torch.randn(channels),
        scale * torch.randn(channels).exp(),
        torch.randn(channels).tanh(),
    )


def digits() -> float:
    """Return the relative rounding error allowed for a sum."""
    return 1e-10 if torch.get_default_dtype() is torch.float64 else 1e-4


def all_colors(levels: int) -> Tensor:
    """Return every color with the given number of levels per channel, (levels^3, 3, 1, 1)."""
    return torch.tensor(list(product(range(levels), repeat=3))).view(-1, 3, 1, 1) / (levels - 1)


def red_of(q: ColorLogisticMixture) -> dist.Distribution:
    """Return the marginal distribution of red; green and blue sum to one."""
    components = DiscretizedLogistic(q.loc[..., 0, :, :, :], q.scale[..., 0, :, :, :])
    return dist.MixtureSameFamily(dist.Categorical(logits=q.logits), components)


# Probabilities


@pytest.mark.parametrize("levels", [2, 3, 8])
@pytest.mark.parametrize("scale", [0.01, 0.1, 1.0])
def test_all_colors_sum_to_one(levels: int, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "_MAX_LEVEL", levels - 1)
    q = mixture_of(4, leading=(5,), scale=scale)
    total = q.log_prob(all_colors(levels).unsqueeze(1)).exp().sum(0)
    torch.testing.assert_close(total, torch.ones(5), rtol=digits(), atol=0)


@pytest.mark.parametrize("level", [0, 100, 255])
def test_green_and_blue_sum_to_the_marginal_of_red(level: int) -> None:
    """At all 256 levels: the 256^2 colors of one red, and the reds to one."""
    q = mixture_of(3, scale=0.3)
    blue_and_green = torch.cartesian_prod(torch.arange(256), torch.arange(256)) / 255
    x = torch.cat([torch.full((256**2, 1), level / 255), blue_and_green], 1).view(-1, 3, 1, 1)
    expected = red_of(q).log_prob(torch.tensor(level / 255)).squeeze()
    torch.testing.assert_close(q.log_prob(x).logsumexp(0), expected, rtol=digits(), atol=0)
    reds = red_of(q).log_prob(torch.arange(256).view(-1, 1, 1) / 255)
    torch.testing.assert_close(reds.exp().sum(0), torch.ones(1, 1), rtol=digits(), atol=0)


@pytest.mark.slow
def test_all_16_million_colors_sum_to_one() -> None:
    q = mixture_of(3, scale=0.1)
    blue_and_green = torch.cartesian_prod(torch.arange(256), torch.arange(256)) / 255
    total = torch.zeros(())
    for level in range(256):
        x = torch.cat([torch.full((256**2, 1), level / 255), blue_and_green], 1).view(-1, 3, 1, 1)
        total += q.log_prob(x).exp().sum()
    torch.testing.assert_close(total, torch.ones(()), rtol=10 * digits(), atol=0)


def probability(x: Sequence[float], weights: Tensor, loc: Tensor, scale: Tensor, coefficients: Tensor) -> float:
    """Return the probability of a color, computed in the units of the paper: x and loc in [-1, 1]."""
    total, (red, green, _) = 0.0, x
    for c, weight in enumerate(weights.tolist()):
        alpha, beta, gamma = coefficients[:, c].tolist()
        mu, product_of_channels = loc[:, c].tolist(), weight
        locations = (mu[0], mu[1] + alpha * red, mu[2] + beta * red + gamma * green)
        for value, m, s in zip(x, locations, scale[:, c].tolist(), strict=True):
            above = 1.0 if value > 0.999 else logistic.cdf((value + 1 / 255 - m) / s)
            below = 0.0 if value < -0.999 else logistic.cdf((value - 1 / 255 - m) / s)
            product_of_channels *= above - below
        total += product_of_channels
    return total


def test_probabilities_match_the_paper() -> None:
    q = mixture_of(3, (2, 2), (2,), scale=0.3)
    x = torch.randint(0, 256, (2, 3, 2, 2)) / 255
    x[0, :, 0] = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])  # both ends
    for image in range(2):
        expected = 0.0
        for i, j in product(range(2), repeat=2):
            place = image, slice(None), i, j
            expected += math.log(
                probability(
                    (2 * x[place] - 1).tolist(),
                    q.logits[image, i, j].softmax(-1),
                    2 * q.loc[place] - 1,
                    2 * q.scale[place],
                    q.coefficients[place],
                )
            )
        assert q.log_prob(x)[image].item() == pytest.approx(expected, rel=100 * digits())


def test_one_component_without_coefficients_is_three_independent_channels() -> None:
    """Bit for bit."""
    q = mixture_of(1, (4, 5), (6,))
    q.coefficients.zero_()
    x = torch.randint(0, 256, (6, 3, 4, 5)) / 255
    channels = DiscretizedLogistic(q.loc.squeeze(-1), q.scale.squeeze(-1)).log_prob(x)
    assert torch.equal(q.log_prob(x), channels.sum(-3).sum((-2, -1)))


def test_log_density_is_accurate_in_the_tails() -> None:
    """Blue at 200 for red and green at 255: its location moves to -1, and the rest is as for a single channel."""
    loc, coefficients = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0.0, -1.0, -1.0])
    one = (3, 1, 1, 1)
    q = ColorLogisticMixture(torch.zeros(1, 1, 1), loc.view(one), torch.full(one, 1e-3), coefficients.view(one))
    found = q.log_prob(torch.tensor([1.0, 1.0, 200 / 255]).view(3, 1, 1))
    ends = 2 * math.log1p(-1 / (1 + math.exp(0.5 / 0.255)))  # red and green at their upper end, which includes the tail
    assert found.item() == pytest.approx(ends - 454.5 / 0.255 + math.log1p(-math.exp(-1 / 0.255)), rel=1e-5)


def test_gradients_match_finite_differences() -> None:
    q = mixture_of(2, (2, 1), (3,), scale=0.3)
    x = torch.randint(0, 256, (3, 3, 2, 1), dtype=torch.uint8).double() / 255
    x[0, :, 0, 0] = torch.tensor([0.0, 1.0, 1.0])
    parameters = [part.double().requires_grad_() for part in (q.logits, q.loc, q.scale, q.coefficients)]
    assert torch.autograd.gradcheck(lambda *parts: ColorLogisticMixture(*parts).log_prob(x), parameters)


def test_additional_batch_dimensions_broadcast() -> None:
    q, x = mixture_of(2, (2, 3), (4,)), torch.randint(0, 256, (5, 4, 3, 2, 3)) / 255
    expected = torch.stack([q.log_prob(each) for each in x])
    torch.testing.assert_close(q.log_prob(x), expected)
    torch.testing.assert_close(q.expand([5, 4]).log_prob(x), expected)
    assert q.expand([5, 4]).sample((2,)).shape == (2, 5, 4, 3, 2, 3)


# Draws


def test_draws_follow_the_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 colors of four levels at two pixels, by the chi-squared test: false alarms 2e-6."""
    monkeypatch.setattr(pixels, "_MAX_LEVEL", 3)
    q = mixture_of(3, (1, 2), scale=0.3)
    q.loc.clamp_(0, 1)
    x = q.sample((100_000,))
    codes = ((3 * x).round().long() * torch.tensor([16, 4, 1]).view(3, 1, 1)).sum(1)
    for column in range(2):
        pixel = (part[..., [column], :] for part in (q.logits, q.loc, q.scale, q.coefficients))
        expected = len(x) * ColorLogisticMixture(*pixel).log_prob(all_colors(4)).double().softmax(0)
        assert expected.min() > 5
        found = torch.bincount(codes[:, 0, column], minlength=64)
        assert chisquare(found.cpu().numpy(), expected.cpu().numpy()).pvalue > 1e-6


def test_coefficients_couple_the_channels() -> None:
    """Least squares on 20,000 draws recovers alpha, beta and gamma, at 5 s.e.: false alarms 2e-6."""
    one = (3, 1, 1, 1)
    coefficients = torch.tensor([0.8, -0.4, 0.6]).view(one)
    q = ColorLogisticMixture(torch.zeros(1, 1, 1), torch.full(one, 0.5), torch.full(one, 0.03), coefficients)
    red, green, blue = (q.sample((20_000,)).squeeze() - 0.5).double().cpu().numpy().T
    for target, given, expected in ((green, [red], [0.8]), (blue, [red, green], [-0.4, 0.6])):
        inputs = np.stack(given, 1)
        slopes, (residual,), *_ = np.linalg.lstsq(inputs, target, rcond=None)
        errors = np.sqrt(np.diag(np.linalg.inv(inputs.T @ inputs)) * residual / len(target))
        assert (np.abs(slopes - expected) < 5 * errors).all()
    assert np.corrcoef(red, green)[0, 1] > 0.5


# The likelihood


def likelihood_of(shape: Sequence[int], spread: float = 0.5, num_components: int = 5) -> LogisticMixture:
    """Build a likelihood for images of a shape and two latents, away from its initialization."""
    images = torch.randint(0, 256, (50, *shape), dtype=torch.uint8)
    likelihood = LogisticMixture(partial(nets.Dense(shape, 4, depth=1).decoder, 2), images, num_components)
    with torch.no_grad():
        for parameter in likelihood.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return likelihood.to(torch.get_default_device())


@pytest.mark.parametrize(
    ("shape", "independent"),
    [((2, 3, 2), True), ((3, 3, 2), False), ((4, 3, 2), True), ((3, 2), True)],
)
def test_only_channels_of_color_images_are_dependent(shape: tuple[int, ...], independent: bool) -> None:
    """For others, exchanging the first channel of two images leaves the sum of their scores unchanged."""
    likelihood, z = likelihood_of(shape), torch.randn(2)
    first, second = torch.randint(0, 256, (2, *shape)) / 255
    exchanged = torch.stack([torch.cat([a[:1], b[1:]]) for a, b in ((first, second), (second, first))])
    change = likelihood(z).log_prob(torch.stack([first, second])).sum() - likelihood(z).log_prob(exchanged).sum()
    assert (abs(change.item()) < digits()) == independent


def test_particles_and_images_score_as_if_alone() -> None:
    likelihood, z, x = likelihood_of((3, 2, 4)), torch.randn(5, 1, 2), torch.randint(0, 256, (4, 3, 2, 4)) / 255
    found = likelihood(z).log_prob(x)
    expected = torch.stack([torch.stack([likelihood(code).log_prob(image) for image in x]) for code in z[:, 0]])
    torch.testing.assert_close(found, expected)


def test_initialization_has_the_quantiles_and_no_dependence() -> None:
    images = torch.randint(0, 256, (40, 3, 2, 2), dtype=torch.uint8)
    start = LogisticMixture(lambda channels: Nothing((channels, 3, 2, 2)), images)(torch.randn(7, 2))
    levels = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    quantiles = torch.quantile(images / 255, levels.to(torch.get_default_dtype()), dim=0).movedim(0, -1)
    torch.testing.assert_close(start.loc, quantiles.expand(7, 3, 2, 2, 5), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(start.scale, torch.full((7, 3, 2, 2, 5), 0.05))
    assert not start.logits.any()
    assert not start.coefficients.any()


def test_support_is_the_gray_levels_of_each_channel() -> None:
    posterior = posteriors.MeanField(nets.Dense((3, 2, 2), 4, depth=1).encoder, 2)
    vae, x = VAE(StandardNormal(2), likelihood_of((3, 2, 2)), posterior), torch.randint(0, 256, (6, 3, 2, 2)) / 255
    check_support(vae.model, vae.guide, x)
    assert describe(vae.model, vae.guide, x).observes == "probability"
    x[1, 2, 0, 1] = 0.5 / 255
    with pytest.raises(ValueError, match=r"observes 0\.00196078, outside the support of its ColorLogisticMixture"):
        check_support(vae.model, vae.guide, x)


class Nothing(nn.Module):
    """A decoder that ignores z."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, z: Tensor) -> Tensor:
        return z.new_zeros(*z.shape[:-1], *self.shape)


def fitted(images: Tensor) -> float:
    """Return the mean log-likelihood of images (N, ...), in nats per number, after 200 steps of training on them."""
    shape = images.shape[1:]
    likelihood = LogisticMixture(lambda channels: Nothing((channels, *shape)), images)
    optimizer = torch.optim.Adam(likelihood.parameters(), lr=0.03)
    z, x = torch.zeros(1, 1), images / 255
    for _ in range(200):
        optimizer.zero_grad()
        loss = -likelihood(z).log_prob(x).mean() / images[0].numel()
        loss.backward()
        optimizer.step()
    return -loss.item()


def test_gray_images_in_color_cost_one_channel() -> None:
    """Uniform grays, repeated: log 256 nats per independent channel, but only once per pixel for dependent ones."""
    gray = torch.randint(0, 256, (200, 1, 2, 2), dtype=torch.uint8)
    images = gray.expand(-1, 3, -1, -1).contiguous()
    alone = fitted(images.flatten(1, 2))  # rows of a gray image: independent channels
    assert alone == pytest.approx(-math.log(256), abs=0.15)
    assert fitted(images) > alone + 1
