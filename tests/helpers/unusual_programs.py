"""Programs and objectives as users write them, whose steps several processes share or refuse."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae import ranks
from pyro_vae.infer import ELBO
from pyro_vae.infer.objectives.particles import Particles


class Separate:
    """Two modules, of which one is registered by the model and the other by the guide, beside a plain parameter."""

    def __init__(self) -> None:
        self.encoder, self.decoder = nn.Linear(6, 4), nn.Linear(2, 6)
        self.epoch = 0  # set by the batches

    def extra(self, x: Tensor) -> Tensor:
        """Return a shift of the logits."""
        return pyro.param("shift", torch.zeros(()))

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        shift = self.extra(x)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z) + shift).to_event(1), obs=x.flatten(1))

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        loc, log_scale = self.encoder(x.flatten(1)).chunk(2, -1)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


class Late(Separate):
    """A parameter that is registered from epoch 3 on."""

    def extra(self, x: Tensor) -> Tensor:
        return pyro.param("late", torch.zeros(6)) if self.epoch >= 3 else torch.zeros(())


class Unused(Separate):
    """Parameters and a module that no image reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(3, 3)

    def extra(self, x: Tensor) -> Tensor:
        pyro.module("unused", self.unused)
        pyro.param("alone", torch.ones(2), constraint=dist.constraints.positive)
        return torch.zeros(())


class Some(Separate):
    """A parameter that only some images reach, so that it has no gradient in some processes."""

    def extra(self, x: Tensor) -> Tensor:
        shift = pyro.param("shift", torch.zeros(()))
        bright = x.flatten(1).sum(1, keepdim=True) > 3
        return torch.where(bright, shift, 0.0) if bright.any() else torch.zeros(())


class ByImages(Separate):
    """A parameter that is registered when an image has a certain pixel, from epoch 1 on."""

    def extra(self, x: Tensor) -> Tensor:
        seen = self.epoch >= 1 and bool(x[0].sum() > x[-1].sum())
        return pyro.param("late", torch.zeros(())) if seen else torch.zeros(())


class PerImage(Separate):
    """A parameter with an entry for each image of a batch."""

    def extra(self, x: Tensor) -> Tensor:
        return pyro.param(f"local_{len(x)}", torch.zeros(len(x), 1))


class Shared(Separate):
    """A latent outside the plate, which all images share."""

    def extra(self, x: Tensor) -> Tensor:
        return pyro.sample("shared", dist.Normal(0.0, 1.0))

    def guide(self, x: Tensor) -> None:
        pyro.sample("shared", dist.Normal(pyro.param("where", torch.zeros(())), 1.0))
        super().guide(x)


class Clipped(Separate):
    """A program whose hook clips the sum of the gradients over the images, which are small for a few images."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder.bias.register_hook(lambda gradient: gradient.clamp(-1.5, 1.5))


class Bounded(Separate):
    """A program that has no memory for the gradients of more than six images in each of several processes."""

    def extra(self, x: Tensor) -> Tensor:
        if ranks.size() > 1 and len(x) > 6 and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("out of memory")
        return super().extra(x)


class Powered(ELBO):
    """A function of the ELBO of each image."""

    def per_image(self, particles: Particles) -> Tensor:
        return -(super().per_image(particles).square() + 1).sqrt()


class Centered(ELBO):
    """The ELBO of each image relative to those of its batch."""

    def per_image(self, particles: Particles) -> Tensor:
        elbo = super().per_image(particles)
        return elbo - 0.1 * (elbo - elbo.mean()).square()


class Averaged(ELBO):
    """The ELBO divided by the number of images."""

    def per_image(self, particles: Particles) -> Tensor:
        elbo = super().per_image(particles)
        return elbo / len(elbo)


class Distant(ELBO):
    """The ELBO of each image, with products of those of images that are at least five places apart in a batch."""

    def per_image(self, particles: Particles) -> Tensor:
        elbo = super().per_image(particles)
        return torch.cat([elbo[:5], elbo[5:] + 0.01 * elbo[5:] * elbo[:-5]])


class OfLargeBatches(ELBO):
    """The ELBO, with another weight in batches of more than four images."""

    def per_image(self, particles: Particles) -> Tensor:
        elbo = super().per_image(particles)
        return 0.9 * elbo if len(elbo) > 4 else elbo


class OfOtherBatches(ELBO):
    """The ELBO, with another weight in batches of five images."""

    def per_image(self, particles: Particles) -> Tensor:
        elbo = super().per_image(particles)
        return 0.9 * elbo if len(elbo) == 5 else elbo
