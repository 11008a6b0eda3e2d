"""The PixelCNN by enumeration of small images: density, receptive field and draws; by itself, and as a likelihood."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from helpers.steps import driver, is_recorded, take_steps
from scipy.stats import chisquare
from torch import Tensor

from pyro_vae.config import Config, programs
from pyro_vae.evaluate import log_weights, score, summarize
from pyro_vae.model import VAE, DensityModel, nets, posteriors
from pyro_vae.model.distributions.autoregressive import Autoregressive
from pyro_vae.model.nets.pixelcnn import ConditionalPixelCNN, PixelCNN
from pyro_vae.model.priors.standard import StandardNormal
from pyro_vae.runs import load_images
from pyro_vae.trace import Batch, EagerBackend, check_support, choose_layout, describe, log_density

CHANNELS, FEATURES = 4, 2


def perturbed(part: Any, spread: float = 0.3) -> Any:
    """Move a module away from its initialization, at which pixels are independent."""
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return part


def net_of(shape: Sequence[int], kernels: Sequence[int] = (3, 3), num_features: int = 0) -> PixelCNN:
    grey = torch.randint(0, 256, (20, *shape), dtype=torch.uint8)
    return perturbed(PixelCNN(grey, CHANNELS, kernels, num_features))


def given_features(
    shape: Sequence[int], kernels: Sequence[int] = (3, 3), leading: Sequence[int] = ()
) -> Autoregressive:
    return net_of(shape, kernels, FEATURES)(torch.randn(*leading, FEATURES, *shape))


def all_images(shape: Sequence[int]) -> Tensor:
    """Return the 2^pixels images of a shape."""
    return torch.tensor(list(product((0.0, 1.0), repeat=math.prod(shape)))).view(-1, *shape)


def count_rows(net: PixelCNN) -> list[int]:
    """Return a list to which every call of the network appends its number of images."""
    rows: list[int] = []
    net.head.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    return rows


def indices_of(x: Tensor) -> Tensor:
    """Return the indices of images (N, ...) in `all_images`."""
    bits = x.flatten(1)
    return (bits * 2.0 ** torch.arange(bits.shape[1] - 1, -1, -1)).sum(1).long()


def p_value(x: Tensor, probabilities: Tensor) -> float:
    """Return the chi-squared p-value of images (N, ...) under the probabilities of `all_images`."""
    expected = (len(x) * probabilities.detach() / probabilities.detach().sum()).cpu()
    found = torch.bincount(indices_of(x), minlength=len(expected)).cpu()
    rare = expected < 10  # counted as one image, because chi-squared is an approximation for large counts
    pairs = [torch.cat([counts[~rare], counts[rare].sum()[None]]) for counts in (found.to(expected), expected)]
    some = pairs[1] > 0
    return chisquare(pairs[0][some].numpy(), pairs[1][some].numpy()).pvalue


# Density


@pytest.mark.parametrize("kernels", [(3, 3), (7, 5, 3)])
def test_probabilities_of_all_images_sum_to_one(kernels: Sequence[int]) -> None:
    x = all_images((3, 3))
    total = net_of((3, 3), kernels)().log_prob(x).exp().sum(0)
    torch.testing.assert_close(total, torch.ones(()))
    conditional = given_features((3, 3), kernels, (4,))
    torch.testing.assert_close(conditional.log_prob(x.unsqueeze(1)).exp().sum(0), torch.ones(4))
    assert conditional.log_prob(x.unsqueeze(1)).std(1).min() > 1e-9  # the features matter for every image


def test_initialization_is_independent_pixels_of_the_mean_image() -> None:
    grey = torch.tensor([[[0, 51], [230, 255]], [[0, 51], [229, 255]]], dtype=torch.uint8)
    start = PixelCNN(grey)()
    mean = (grey.double().mean(0) / 255).clamp(1e-3, 1 - 1e-3)
    expected = mean.logit().expand(16, 2, 2)
    torch.testing.assert_close(start.logits(all_images((2, 2))), expected, check_dtype=False, rtol=1e-5, atol=1e-6)


def dependence(net: PixelCNN, shape: Sequence[int]) -> Tensor:
    """Return (pixels, pixels): whether a logit has a derivative with respect to a pixel, at any of 30 images."""
    logits = net().logits
    images = 3 * torch.randn(30, *shape)  # so that no unit is saturated, or at zero, for all of them
    slopes = [torch.autograd.functional.jacobian(logits, x).flatten(2).flatten(0, 1) for x in images]
    return torch.stack(slopes).abs().amax(0) > 0


@pytest.mark.parametrize("kernels", [(3, 3, 3, 3), (5, 5), (7, 3), (9,)])
def test_pixel_depends_on_all_preceding_pixels_and_no_others(kernels: Sequence[int]) -> None:
    """No blind spot: on 5x5 the margins of these kernels add up to the width."""
    found = dependence(net_of((5, 5), kernels), (5, 5))
    assert torch.equal(found, torch.ones(25, 25, dtype=torch.bool).tril(-1))


def test_receptive_field_of_one_layer() -> None:
    """Width 3: two pixels to the left, and in the two rows above up to one column to each side."""
    found = dependence(net_of((6, 7), (3,)), (6, 7)).view(6, 7, 6, 7)
    for row, column in product(range(6), range(7)):
        left = {(row, column - step) for step in (1, 2)}
        above = {(row - up, column + aside) for up in (1, 2) for aside in (-1, 0, 1)}
        inside = {(r, c) for r, c in left | above if r >= 0 and 0 <= c < 7}
        assert {tuple(place) for place in found[row, column].nonzero().tolist()} == inside


@pytest.mark.parametrize("kernels", [(3,), (3, 3), (5, 3)])
def test_rows_within_the_receptive_field_suffice(kernels: Sequence[int]) -> None:
    """With one row fewer the logits differ."""
    shape = (9, 4)
    conditional, x = given_features(shape, kernels, (3,)), torch.bernoulli(torch.full((3, *shape), 0.5))
    net, features = conditional.net, conditional.features
    whole = conditional.logits(x) - net.bias
    for missing in (0, 1):
        for row in range(net.receptive_rows, 9):
            near = slice(row - net.receptive_rows + missing, row + 1)
            above = [part[..., -1:, :] for part in net.vertical(x[:, near], features[..., near, :])]
            cropped = net.logits(x[:, row : row + 1], above).squeeze(1)
            difference = (cropped - whole[:, row]).abs().max()
            assert (difference < 1e-12) == (not missing)


def test_particles_score_like_single_images_and_feature_maps() -> None:
    x, conditional = all_images((2, 3))[:5], given_features((2, 3), leading=(4, 5))
    alone = [[conditional.net(conditional.features[k, b]).log_prob(x[b]) for b in range(5)] for k in range(4)]
    expected = torch.stack([torch.stack(row) for row in alone])
    torch.testing.assert_close(conditional.log_prob(x), expected)
    one = conditional.net(conditional.features[0, 0])
    torch.testing.assert_close(one.expand([4, 5]).log_prob(x), one.log_prob(x).expand(4, 5))


def test_without_features_each_image_is_scored_once() -> None:
    net, x = net_of((2, 3)), all_images((2, 3))[:5]
    expected = net().log_prob(x).expand(4, 5)
    rows = count_rows(net)
    assert torch.equal(net().expand([4, 5]).log_prob(x), expected)
    assert rows == [5]


def test_support_is_binary() -> None:
    program = DensityModel(net_of((2, 3)))
    x = all_images((2, 3))
    check_support(program.model, program.guide, x)
    assert describe(program.model, program.guide, x).observes == "probability"
    x[3, 1, 1] = 0.5
    with pytest.raises(ValueError, match=r"observes 0\.5, outside the support of its Autoregressive: binarize"):
        check_support(program.model, program.guide, x)


def test_images_without_height_and_width_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"requires images of shape \(height, width\), not \(3, 8, 8\)"):
        PixelCNN(torch.zeros(5, 3, 8, 8, dtype=torch.uint8))


# Draws


@pytest.mark.parametrize("shape", [(2, 3), (6, 1), (1, 6)])
def test_samples_follow_the_probabilities_of_all_images(shape: Sequence[int]) -> None:
    """Without features and for two feature maps, with more rows than the receptive field: false alarms 3e-5 in all."""
    for q in (net_of(shape, (3,))(), given_features(shape, (3,), (2,))):
        with torch.no_grad():
            probabilities = q.log_prob(all_images(shape).view(-1, *[1] * len(q.batch_shape), *shape)).exp()
        x = q.sample((10_000,))
        columns = zip(x.unbind(1), probabilities.unbind(1), strict=True) if q.batch_shape else [(x, probabilities)]
        for drawn, expected in columns:
            assert p_value(drawn, expected) > 3e-6


@pytest.mark.parametrize("seen", [1, 3, 4])
def test_inpainting_follows_the_conditional(seen: int) -> None:
    """By enumeration on 2x3, whatever the values of the missing pixels: false alarms 1e-5 for each."""
    q, x = given_features((2, 3)), torch.full((2, 3), math.nan)
    x.view(-1)[:seen] = torch.bernoulli(torch.full((seen,), 0.5))
    found = q.inpaint(x.expand(10_000, 2, 3), seen).flatten(1)
    assert torch.equal(found[:, :seen], x.flatten()[:seen].expand(10_000, seen))
    rest = all_images((1, 6 - seen)).flatten(1)
    whole = torch.cat([x.flatten()[:seen].expand(len(rest), seen), rest], 1).view(-1, 2, 3)
    assert p_value(found[:, seen:], q.log_prob(whole).exp()) > 1e-5


def test_inpainting_with_all_or_no_pixels_observed() -> None:
    q, x = given_features((2, 3), leading=(4, 1)), all_images((2, 3))[40:45]
    assert torch.equal(q.inpaint(x, 6), x.expand(4, 5, 2, 3))
    pyro.set_rng_seed(1)
    expected = q.expand([4, 5]).sample()
    pyro.set_rng_seed(1)
    assert torch.equal(q.inpaint(x, 0), expected)
    for seen in (-1, 7):
        with pytest.raises(ValueError, match=f"num_observed is {seen}; it must be between 0 and 6"):
            q.inpaint(x, seen)


# The program without latents


def test_every_weight_is_the_probability_of_the_image() -> None:
    """For every K from one call of the network, bit for bit; bounds up to rounding.

    Two more calls, on first use, test whether the score of an image depends on other images.
    """
    net = net_of((2, 3))
    program, x = DensityModel(net), all_images((2, 3))[:7]
    expected = net().log_prob(x).detach()
    rows, backend = count_rows(net), EagerBackend()
    for num_samples in (1, 2, 30, 5000):
        log_w = log_weights(program.model, program.guide, x, num_samples, backend=backend)
        assert torch.equal(log_w, expected.double().expand(num_samples, 7))
        assert rows == ([7] if num_samples > 1 else [7, 7, 7])
        rows.clear()
    scores = score(program.model, program.guide, x, 50)
    for found in (scores.elbo, scores.log_likelihood, scores.psis, scores.jvi1, scores.jvi2, *scores.iwae):
        np.testing.assert_allclose(found, expected.cpu().numpy(), rtol=1e-12)
    numbers = summarize(scores, active_units=0, num_pixels=6)
    missing = {name for name, value in numbers.items() if value is None}
    assert missing == {"khat_median", "khat_bad_fraction"}
    assert all("not all equal" in numbers["reasons"][name] for name in missing)
    assert numbers["rate"] == 0
    assert numbers["ess_median"] == pytest.approx(50)


def test_training_beats_independent_pixels() -> None:
    """Images all black or all white, one bit each: 6 log 2 nats at the start, log 2 at best."""
    x = torch.tensor([0.0, 1.0]).view(2, 1, 1).expand(2, 2, 3)
    program = DensityModel(PixelCNN((255 * x).byte(), 64, (3, 3)))  # with few channels, some starts have dead units
    svi = driver(program)
    losses = [float(svi.step(x)) / 2 for _ in range(300)]
    assert losses[0] == pytest.approx(6 * math.log(2))
    assert math.log(2) - 1e-3 < losses[-1] < math.log(2) + 0.05


def test_recorded_steps_equal_those_of_pyro() -> None:
    runs = []
    for graph in (None, "recorded"):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        program = DensityModel(net_of((3, 2)))
        svi = driver(program, graph=graph)
        runs.append(take_steps(svi, 20))
    assert is_recorded(svi)
    assert runs[1] == pytest.approx(runs[0], rel=1e-12)


# The likelihood of a VAE


def pixel_vae() -> VAE:
    """A VAE of 2x2 images and one latent unit, with a guide wider than the posteriors."""
    grey = torch.randint(0, 256, (20, 2, 2), dtype=torch.uint8)
    family = nets.Dense((2, 2), 4, depth=1)
    likelihood = ConditionalPixelCNN(partial(family.decoder, 1), grey, CHANNELS, num_features=FEATURES)
    vae = VAE(StandardNormal(1), perturbed(likelihood), perturbed(posteriors.MeanField(family.encoder, 1), 0.1))
    with torch.no_grad():
        last = list(vae.posterior.parameters())[-2:]
        last[0].mul_(0.1)
        last[1].copy_(torch.tensor([0.0, math.log(1.2)]))
    return vae


def test_evidence_of_a_pixelvae_matches_quadrature() -> None:
    """The trapezoidal rule over z in [-8, 8]; 16 images at 5 s.e. of 5,000 draws, false alarms 1e-5."""
    vae, x = pixel_vae(), all_images((2, 2))
    z = torch.linspace(-8, 8, 401)
    with torch.no_grad():
        sites = log_density(vae.model, x, {"z": z.view(-1, 1, 1).expand(401, 16, 1)})
        by_hand = vae.likelihood(z.view(-1, 1, 1)).log_prob(x)
    torch.testing.assert_close(sites["x"], by_hand)
    evidence = (sites["x"] + sites["z"]).logsumexp(0) + math.log(z[1] - z[0])
    assert evidence.exp().sum().item() == pytest.approx(1, abs=1e-10)
    assert sites["x"].std(0).min() > 1e-9  # the likelihood depends on z
    scores = score(vae.model, vae.guide, x, 5000, seed=0)
    error = np.abs(scores.log_likelihood - evidence.cpu().numpy())
    assert (error < 5 * np.sqrt(scores.relative_variance)).all()


def test_pixelvae_supports_particles() -> None:
    vae, x = pixel_vae(), all_images((2, 2))
    assert choose_layout(vae.model, Batch(x), 3, {"z": torch.randn(3, 16, 1)}).kind == "particles"


# Flags


@pytest.mark.parametrize(
    ("program", "unread"),
    [
        ("pixelcnn", {"prior": "vamp"}),
        ("pixelcnn", {"posterior": "iaf"}),
        ("pixelcnn", {"likelihood": "categorical"}),
        ("pixelcnn", {"net": "conv"}),
        ("pixelcnn", {"latent_dim": 3}),
        ("pixelcnn", {"objective": "iwae"}),
        ("pixelcnn", {"num_particles": 2}),
        ("pixelvae", {"likelihood": "gaussian"}),
    ],
)
def test_flag_without_effect_on_the_program_is_rejected(program: str, unread: dict[str, Any]) -> None:
    settings = Config(program=program, device="cpu", **unread)
    (name,) = unread
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} has no effect with --program {program}"):
        programs.build(settings, load_images(settings).pixels)
