"""The VAE of introductory notebooks, 784-512-256-2 on gray pixels: loss and gradients match a handwritten version."""

from __future__ import annotations

import pyro
import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, linear, relu

from pyro_vae import data
from pyro_vae.config import Config, programs
from pyro_vae.evaluate import score
from pyro_vae.infer import ELBO
from pyro_vae.infer.objectives.particles import draw_particles
from pyro_vae.model import VAE

SETTINGS = Config(
    binarize="none",
    likelihood="cross-entropy",
    net="funnel",
    hidden_dim=512,
    latent_dim=2,
    objective="meanfield-elbo",
    device="cpu",
)


def program() -> tuple[VAE, Tensor]:
    """Build the program for random 28x28 images and move its biases away from 0."""
    pixels = torch.randint(0, 256, (40, 28, 28), dtype=torch.uint8)
    vae = programs.build(SETTINGS, data.Images("random", pixels, pixels, pixels))
    vae = vae.to(torch.get_default_device())
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return vae, torch.rand(4, 28, 28)


def by_hand(vae: VAE, x: Tensor, eps: Tensor) -> Tensor:
    """Return BCE + KLD, each summed over its last dimension, for images (B, 28, 28) and noise (..., B, 2)."""
    first, second, heads = vae.posterior.net[1]
    h = relu(linear(x.flatten(1), first[0].weight, first[0].bias))
    h = relu(linear(h, second[0].weight, second[0].bias))
    # The notebook predicts the log variance, twice our log scale.
    mu, log_var = linear(h, heads.weight[:2], heads.bias[:2]), linear(h, 2 * heads.weight[2:], 2 * heads.bias[2:])
    z = mu + (0.5 * log_var).exp() * eps
    first, second, last = vae.likelihood.net[0]
    h = relu(linear(z, first[0].weight, first[0].bias))
    h = relu(linear(h, second[0].weight, second[0].bias))
    logits = linear(h, last.weight, vae.likelihood.bias.flatten())
    target = x.flatten(1).expand(logits.shape)
    bce = binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1)
    return bce - 0.5 * (1 + log_var - mu.pow(2) - log_var.exp()).sum(-1)


def test_layers_have_the_sizes_of_the_notebook() -> None:
    """784-512-256-(2, 2) and 2-256-512-784, weights and biases."""
    vae, _ = program()
    shapes = sorted(tuple(p.shape) for p in vae.parameters() if p.dim() == 2)
    assert shapes == sorted([(512, 784), (256, 512), (4, 256), (256, 2), (512, 256), (784, 512)])
    assert sum(p.numel() for p in vae.parameters()) == 1_068_820


def test_loss_and_gradients_match_the_notebook() -> None:
    vae, x = program()
    objective = programs.build_objective(SETTINGS, 40)
    objective.loss(vae.model, vae.guide, x)  # the layout is probed on the first call
    pyro.set_rng_seed(1)
    found = objective.differentiable_loss(vae.model, vae.guide, x)
    pyro.set_rng_seed(1)
    expected = by_hand(vae, x, torch.empty(1, 4, 2).normal_()).sum()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    gradients = [torch.autograd.grad(loss, list(vae.parameters())) for loss in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10 * float(theirs.abs().max()))


def test_elbo_objective_has_the_same_expectation() -> None:
    """Independent noise, 4 s.e., false alarms 6e-5. Rate and distortion agree too; there is no ELBO."""
    vae, x = program()
    with torch.no_grad():
        theirs = by_hand(vae, x, torch.randn(1000, 4, 2)).sum(1)
        particles = draw_particles(vae.model, vae.guide, x, 1000)
    assert ELBO(1000).per_image(particles).sum().item() == pytest.approx(particles.log_w.sum(1).mean().item())
    ours = -particles.log_w.sum(1)
    error = (theirs.var() + ours.var()).div(1000).sqrt().item()
    assert ours.mean().item() == pytest.approx(theirs.mean().item(), abs=4 * error)
    scores = score(vae.model, vae.guide, x, 1000, seed=0)
    assert (scores.rate + scores.distortion).sum() == pytest.approx(theirs.mean().item(), abs=4 * error)
    assert particles.elbo.isnan().all()
    assert scores.reason == "the loss of 'x' is not normalized, hence not a log-likelihood"
