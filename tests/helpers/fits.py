"""A fit of the small VAE to images that are binarized in each epoch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyro_vae.infer import ELBO, SVI, Fit, Objective, Optim, schedules
from pyro_vae.model import VAE

EPOCHS, BATCHES, SIZE = 6, 4, 8


class Fixed:
    """The same 32 images in a new order each epoch, binarized again with the global generator."""

    num_images = BATCHES * SIZE

    def __init__(self) -> None:
        generator = torch.Generator("cpu").manual_seed(0)
        self.grey = torch.rand(self.num_images, 3, 2, generator=generator, device="cpu").to(torch.get_default_device())

    def __call__(self, epoch: int) -> Iterator[Tensor]:
        order = torch.arange(self.num_images).roll(epoch)
        yield from order.split(SIZE)

    def observe(self, batch: Tensor) -> Tensor:
        return torch.bernoulli(self.grey[batch])

    @property
    def valid(self) -> Tensor:
        return (self.grey > 0.5).to(self.grey.dtype)


class Inverted(Fixed):
    """Images that are inverted from epoch 3 on, so that the validation ELBO falls."""

    def __call__(self, epoch: int) -> Iterator[Tensor]:
        self.epoch = epoch
        return super().__call__(epoch)

    def observe(self, batch: Tensor) -> Tensor:
        return 1 - super().observe(batch) if self.epoch >= 3 else super().observe(batch)


class Multiplied(Fixed):
    """Images times a factor, which a test sets to NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.ones(())

    def observe(self, batch: Tensor) -> Tensor:
        return super().observe(batch) * self.factor


def new_fit(vae: VAE, loss: Objective | None = None, graph: str | None = None, **arguments: object) -> Fit:
    schedule = schedules.per_step(schedules.cosine, EPOCHS * BATCHES)
    optim = Optim(torch.optim.Adam, {"lr": 0.02, "fused": True}, schedule)
    batches = Fixed()
    defaults = {"epochs": EPOCHS, "valid": batches.valid}
    return Fit(SVI(vae.model, vae.guide, optim, loss or ELBO(), execution=graph), batches, **(defaults | arguments))
