"""A third-party program, a VAE like that of Pyro's tutorial, evaluated by every measure without modification."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_vae.evaluate import (
    AISConfig,
    ais,
    bdmc,
    elbo_surgery,
    impute,
    log_weights,
    per_image_elbos,
    sbc_ranks,
    score,
)

PIXELS, HIDDEN, Z_DIM = 12, 8, 3


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(PIXELS, HIDDEN)
        self.fc21, self.fc22 = nn.Linear(HIDDEN, Z_DIM), nn.Linear(HIDDEN, Z_DIM)
        self.softplus = nn.Softplus()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.softplus(self.fc1(x.reshape(-1, PIXELS)))
        return self.fc21(hidden), torch.exp(self.fc22(hidden))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc21 = nn.Linear(Z_DIM, HIDDEN), nn.Linear(HIDDEN, PIXELS)
        self.softplus, self.sigmoid = nn.Softplus(), nn.Sigmoid()

    def forward(self, z: Tensor) -> Tensor:
        return self.sigmoid(self.fc21(self.softplus(self.fc1(z))))


class TutorialVAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()
        self.z_dim = Z_DIM

    def model(self, x: Tensor) -> Tensor:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z_loc, z_scale = x.new_zeros((x.shape[0], self.z_dim)), x.new_ones((x.shape[0], self.z_dim))
            z = pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))
            loc_img = self.decoder.forward(z)
            pyro.sample("obs", dist.Bernoulli(loc_img).to_event(1), obs=x.reshape(-1, PIXELS))
            return loc_img

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            z_loc, z_scale = self.encoder.forward(x)
            pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))


def program() -> TutorialVAE:
    vae = TutorialVAE().to(torch.get_default_device())
    with torch.no_grad():
        for p in vae.decoder.parameters():
            p.add_(0.5 * torch.randn_like(p))
        # A guide wider than the prior, with means near zero: p(x|z) <= 1, so that the weights are bounded.
        vae.encoder.fc21.bias.zero_()
        vae.encoder.fc22.weight.zero_()
        vae.encoder.fc22.bias.fill_(0.2)
    return vae


def by_hand(vae: TutorialVAE, x: Tensor, num_samples: int) -> Tensor:
    """Return log (1/K) sum_k p(x, z_k) / q(z_k|x), computed without Pyro."""
    with torch.no_grad():
        h = softplus(vae.encoder.fc1(x.reshape(-1, PIXELS)))
        loc, log_scale = vae.encoder.fc21(h), vae.encoder.fc22(h)
        noise = torch.randn(num_samples, *loc.shape)
        z = loc + log_scale.exp() * noise
        logits = vae.decoder.fc21(softplus(vae.decoder.fc1(z)))
        log_x = (x.reshape(-1, PIXELS) * logits - softplus(logits)).sum(-1)
        log_w = log_x + (-0.5 * z**2 + 0.5 * noise**2 + log_scale).sum(-1)
    return log_w.logsumexp(0) - math.log(num_samples)


def test_tutorial_program_is_evaluated_unmodified() -> None:
    vae, x = program(), torch.bernoulli(torch.full((30, 4, 3), 0.5))
    truth = by_hand(vae, x, 50_000).cpu().numpy()
    scores = score(vae.model, vae.guide, x, 10_000, seed=0)
    error = scores.log_likelihood - truth
    assert (np.abs(error) < 5 * np.sqrt(scores.relative_variance) + 0.01).all()
    annealed = ais(vae.model, vae.guide, x, AISConfig(16, 100, 3), seed=0)
    np.testing.assert_allclose(annealed.lower.mean(), truth.mean(), atol=0.03)
    both = bdmc(vae.model, vae.guide, x, AISConfig(16, 100, 3), seed=0)
    assert abs(both.gap.mean()) < 0.05

    local = per_image_elbos(vae.model, vae.guide, x, ["diagonal"], num_steps=200, seed=0)
    assert scores.elbo.mean() < local["diagonal"].mean() < truth.mean() + 0.02
    parts = elbo_surgery(vae.model, vae.guide, x, seed=0)
    # Each term is at most log 30; their mean estimates a positive number with their standard error (false alarms 1e-5).
    terms = parts.mutual_information
    assert (terms <= math.log(30)).all()
    assert terms.mean() > -5 * terms.std(ddof=1) / len(terms) ** 0.5
    assert sbc_ranks(vae.model, vae.guide, x, 9, seed=0).max() == 9
    assert not list(pyro.get_param_store())


def test_missing_pixels_of_a_tutorial_program() -> None:
    """It flattens its images, so gaps are given in the flattened shape. Without gaps the weights are unchanged."""
    vae, x = program(), torch.bernoulli(torch.full((5, PIXELS), 0.5))
    whole = log_weights(vae.model, vae.guide, x, 20_000, seed=0).logsumexp(0) - math.log(20_000)
    found = impute(vae.model, vae.guide, x, AISConfig(200, 50, 3), fill_value=torch.zeros(PIXELS), seed=0)
    np.testing.assert_allclose(found.ais.lower, whole.cpu(), atol=0.1)
