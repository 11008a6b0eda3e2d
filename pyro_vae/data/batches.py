r"""Batches of training images, in a random order that is reproducible for each epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.errors import DataError


class Batches:
    """Batches of the training images. The order of an epoch depends only on the seed and the epoch.

    A batch is a tensor of indices, so that gathering and binarization happen inside the (possibly compiled) training
    step. If only some images have labels (the others have the label -1), labeled images are appended to every batch,
    a tenth of `batch_size`, so that each step has some.

    Args:
        pixels: Training images, uint8, shape (N, *pixels), on the device of the fit.
        batch_size: Number B of images per batch. The last batch of an epoch may be smaller.
        seed: Random seed of the order.
        observe: Function that converts uint8 pixels (B, *pixels) to the values observed by the program.
        labels: Labels of the images, shape (N, ...), passed to the program together with the images; or None.

    Raises:
        DataError: If there are fewer images than `batch_size`.
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
        """Yield the batches of one epoch: indices (B,), on the device of the images."""
        return self._indices(epoch)

    def _indices(self, epoch: int) -> Iterator[Tensor]:
        # Torch's generators use only 32 bits of a seed, so that seed and epoch are hashed into 32 bits. The generator
        # is on the CPU, so that the order does not depend on the device.
        mixed = np.random.SeedSequence([self.seed, epoch]).generate_state(1)
        generator = torch.Generator().manual_seed(int(mixed[0]))
        order = torch.randperm(self.num_images, generator=generator, device="cpu").to(self.pixels.device)
        if self.labels is None or not (self.labels < 0).any():
            yield from order.split(self.batch_size)
            return
        labeled = (self.labels >= 0).nonzero().flatten()
        for batch in order.split(self.batch_size):
            chosen = torch.randperm(len(labeled), generator=generator, device="cpu")[: -(-self.batch_size // 10)]
            yield torch.cat([batch, labeled[chosen.to(labeled.device)]])

    def observe(self, batch: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return the observed values of the images with these indices, float (B, *pixels), and any labels."""
        x = self._observe(self.pixels[batch])
        return x if self.labels is None else (x, self.labels[batch])


class StreamedBatches(Batches):
    """Batches of training images that stay on the host while the program runs on another device.

    The order is that of `Batches`. A batch contains the uint8 pixels (B, *pixels) of its images, and their labels if
    there are any, on the device of the program. Copies are asynchronous, so that the next batch is gathered while the
    device computes.

    Args:
        *args: Arguments of `Batches`; `pixels` and `labels` are on the host, and `observe` runs on the device.
        device: Device of the program.
    """

    def __init__(self, *args: Any, device: torch.device) -> None:
        super().__init__(*args)
        self.device = device

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, ...]]:
        """Yield the batches of one epoch: pixels, uint8 (B, *pixels), and labels (B, ...), if there are any."""
        sources = (self.pixels,) if self.labels is None else (self.pixels, self.labels)
        for chosen in self._indices(epoch):
            yield tuple(self._copied(source[chosen]) for source in sources)

    def observe(self, pixels: Tensor, labels: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Return the observed values of these pixels, float (B, *pixels), and any labels."""
        x = self._observe(pixels)
        return x if labels is None else (x, labels)

    def _copied(self, rows: Tensor) -> Tensor:
        # Copies are asynchronous only from pinned memory.
        rows = rows.pin_memory() if self.device.type == "cuda" else rows
        return rows.to(self.device, non_blocking=True)
