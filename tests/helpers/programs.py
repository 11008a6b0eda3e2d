"""Small programs that many tests fit and score."""

from __future__ import annotations

from functools import partial

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.model import VAE, TwoLayerVAE, likelihoods, nets, posteriors
from pyro_vae.model.priors.standard import StandardNormal


def small_vae() -> VAE:
    family = nets.Dense((3, 2), 8, depth=1)
    likelihood = likelihoods.Bernoulli(partial(family.decoder, 2), gray_images(0.3))
    return VAE(StandardNormal(2), likelihood, posteriors.MeanField(family.encoder, 2))


def gray_images(grey: float) -> Tensor:
    return torch.full((1, 3, 2), round(255 * grey), dtype=torch.uint8)


def images(num_images: int) -> Tensor:
    return torch.bernoulli(torch.full((num_images, 3, 2), 0.4))


def two_layer() -> TwoLayerVAE:
    family = nets.Dense((3, 2), 5, depth=1)
    return TwoLayerVAE(
        prior=StandardNormal(1),
        generator=posteriors.MeanField(lambda outputs: nets.MLP([1, 4, outputs]), 1),
        likelihood=likelihoods.Bernoulli(partial(family.decoder, 1), gray_images(0.4)),
        posterior=posteriors.MeanField(family.encoder, 1),
        top_posterior=posteriors.MeanField(lambda outputs: nets.MLP([1, 4, outputs]), 1),
    )


class Layered(nn.Module):
    """A VAE whose encoder has a layer such as batch normalization or dropout."""

    def __init__(self, layer: nn.Module, *, bias: bool = True) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 8, bias=bias), layer, nn.Tanh(), nn.Linear(8, 4))
        self.decoder = nn.Linear(2, 6)

    def model(self, x: Tensor) -> None:
        pyro.module("program", self)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x.flatten(1))

    def guide(self, x: Tensor) -> None:
        pyro.module("program", self)
        loc, log_scale = self.encoder(x.flatten(1)).chunk(2, -1)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


class ConvProgram(nn.Module):
    """A decoder that calls `view(z.shape[0], ...)` and therefore takes no particle dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(1, 2, 4)
        self.first = nn.Linear(2, 18)
        self.conv = nn.ConvTranspose2d(2, 1, 2)

    def model(self, x: Tensor) -> None:
        pyro.module("conv", self)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            logits = self.conv(self.first(z).view(z.shape[0], 2, 3, 3)).view(x.shape[0], 4, 4)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(2), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("conv", self)
        with pyro.plate("data", x.shape[0]):
            loc = self.encoder(x.view(x.shape[0], 1, 4, 4)).view(x.shape[0], 2)
            pyro.sample("z", dist.Normal(loc, 0.5).to_event(1))
