r"""The order in which a fit sees its training images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.errors import DataError


class Batches:
    """Batches of the training images, each epoch in an order that depends on seed and epoch alone.

    A batch is the indices of its images, so that what is done with them belongs to the step that takes it. Where only
    some images have labels, the others -1, every batch has some with a label after it, a tenth as many.

    Args:
        pixels: uint8 (N, *pixels), on the device of the fit.
        batch_size: B; the last batch of an epoch may be smaller.
        seed: of the order.
        observe: what the program observes of uint8 pixels (B, *pixels).
        labels: (N, ...) of the images, which a program that takes them is given beside them, or None.

    Raises:
        DataError: fewer images than one batch.
    """

    def __init__(
        self,
        pixels: Tensor,
        batch_size: int,
        seed: int,
        observe: Callable[[Tensor], Tensor],
        labels: Tensor | None = None,
    ) -> None:
        if batch_size > len(pixels):
            raise DataError(f"A batch of {batch_size} is larger than the {len(pixels)} images: lower --batch-size.")
        self.pixels = pixels
        self.batch_size = batch_size
        self.seed = seed
        self.labels = labels
        self.num_images = len(pixels)
        self._observe = observe

    def __call__(self, epoch: int) -> Iterator[Any]:
        """Yield the batches of one epoch, indices (B,) on the device of the images."""
        return self._indices(epoch)

    def _indices(self, epoch: int) -> Iterator[Tensor]:
        # Torch's generators keep 32 bits of a seed, so seed and epoch are hashed into them. The generator lives on
        # the CPU, so that the order does not depend on the device.
        mixed = np.random.SeedSequence([self.seed, epoch]).generate_state(1)
        generator = torch.Generator().manual_seed(int(mixed[0]))
        order = torch.randperm(self.num_images, generator=generator, device="cpu").to(self.pixels.device)
        if self.labels is None or not (self.labels < 0).any():
            yield from order.split(self.batch_size)
            return
        labelled = (self.labels >= 0).nonzero().flatten()
        for batch in order.split(self.batch_size):
            chosen = torch.randperm(len(labelled), generator=generator, device="cpu")[: -(-self.batch_size // 10)]
            yield torch.cat([batch, labelled[chosen.to(labelled.device)]])

    def observe(self, batch: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return what the program observes of the images at these indices, float (B, *pixels), with their labels."""
        x = self._observe(self.pixels[batch])
        return x if self.labels is None else (x, self.labels[batch])


class StreamedBatches(Batches):
    """Batches of training images that stay on the host while the program runs on a device, in the order of `Batches`.

    A batch holds the pixels of its images, uint8 (B, *pixels), and their labels if there are any, on the device. The
    copy does not wait for the device, so that the next batch is gathered while the device computes.

    Args:
        pixels: uint8 (N, *pixels), on the host.
        batch_size: as in `Batches`.
        seed: as in `Batches`.
        observe: as in `Batches`, on the device.
        labels: as in `Batches`.
        device: the device of the program.
    """

    def __init__(
        self,
        pixels: Tensor,
        batch_size: int,
        seed: int,
        observe: Callable[[Tensor], Tensor],
        labels: Tensor | None,
        device: torch.device,
    ) -> None:
        super().__init__(pixels, batch_size, seed, observe, labels)
        self.device = device

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, ...]]:
        """Yield the batches of one epoch: pixels, uint8 (B, *pixels), and labels (B, ...) if there are any."""
        sources = (self.pixels,) if self.labels is None else (self.pixels, self.labels)
        for chosen in self._indices(epoch):
            yield tuple(self._copied(source[chosen]) for source in sources)

    def observe(self, pixels: Tensor, labels: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Return what the program observes of these pixels, float (B, *pixels), with their labels."""
        x = self._observe(pixels)
        return x if labels is None else (x, labels)

    def _copied(self, rows: Tensor) -> Tensor:
        # Only a copy from pinned memory is asynchronous.
        rows = rows.pin_memory() if self.device.type == "cuda" else rows
        return rows.to(self.device, non_blocking=True)
