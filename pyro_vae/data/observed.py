r"""What a program observes of uint8 pixels, and the order in which it sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.images import DataError, Images

_FIXED_SEED = 20160301  # of every binarization that is drawn once


def binarize(images: Images, how: str) -> Images:
    """Draw once what is drawn once: validation and test of ``dynamic``, all of ``fixed``; threshold at 128.

    ``dynamic`` keeps the training images grey, for `observe` to draw anew at each use. An image's draw depends
    on its place in its split alone.
    """
    if how in ("dynamic", "fixed"):
        return replace(
            images,
            train=images.train if how == "dynamic" else _draw_once(images.train, 0),
            valid=_draw_once(images.valid, 1),
            test=_draw_once(images.test, 2),
        )
    if how == "threshold":
        return images.map(lambda pixels: 255 * (pixels >= 128).byte())
    return images


def _draw_once(pixels: Tensor, stream: int) -> Tensor:
    generator = torch.Generator().manual_seed(_FIXED_SEED + stream)
    noise = torch.rand(pixels.shape, generator=generator, device="cpu").to(pixels.device)
    return 255 * (noise * 255 < pixels).byte()


def observe(pixels: Tensor, how: str, *, dequantize: bool = False, generator: torch.Generator | None = None) -> Tensor:
    """Turn uint8 pixels into what a program observes, in [0, 1], of torch's default dtype.

    Args:
        pixels: (B, *pixels), uint8.
        how: ``none`` for grey pixels; otherwise 0/1, x ~ Bernoulli(grey / 255), which leaves 0 and 255 as
            they are.
        dequantize: for densities, x = (level + u) / 256 with u ~ U[0, 1): Theis, van den Oord, Bethge,
            "A note on the evaluation of generative models", ICLR 2016 (https://arxiv.org/abs/1511.01844).
        generator: of the CPU, for noise that is the same on every device; None takes torch's global stream.
    """
    if how == "none" and not dequantize:
        return pixels / 255
    device = pixels.device if generator is None else "cpu"
    noise = torch.rand(pixels.shape, generator=generator, device=device).to(pixels.device)
    if how != "none":
        return (noise * 255 < pixels).to(noise.dtype)
    # 16 bits of noise: with more, float32 rounds some white pixels up to the next level, to exactly 1.
    return (pixels + (noise * 65536).floor() / 65536) / 256


def observe_once(pixels: Tensor, look: Callable[..., Tensor]) -> Tensor:
    """Observe images that are to be scored, by `observe` with its arguments bound: the same in every run."""
    return look(pixels, generator=torch.Generator().manual_seed(_FIXED_SEED))


def some_labels(labels: Tensor, number: int) -> Tensor:
    """Keep the first labels (N,) of each class, `number` in all and evenly divided, and replace the others by -1."""
    kept = torch.full_like(labels, -1)
    classes = labels.unique()
    for place, each in enumerate(classes.tolist()):
        share = number // len(classes) + (place < number % len(classes))
        first = (labels == each).nonzero().flatten()[:share]
        kept[first] = labels[first]
    return kept


class Batches:
    """Batches of the training images, each epoch in an order that depends on seed and epoch alone.

    A batch is the places of its images, so that what is done with them belongs to the step that takes it. Where only
    some images have labels, the others -1, every batch has some with a label after it, a tenth as many.

    Args:
        pixels: uint8 (N, *pixels), on the device of the fit.
        batch_size: B; the last batch of an epoch may be smaller.
        seed: of the order.
        look: what the program observes of uint8 pixels.
        labels: (N, ...) of the images, which a program that takes them is given beside them, or None.

    Raises:
        DataError: fewer images than one batch.
    """

    def __init__(
        self, pixels: Tensor, batch_size: int, seed: int, look: Callable[..., Tensor], labels: Tensor | None = None
    ) -> None:
        if batch_size > len(pixels):
            raise DataError(f"A batch of {batch_size} is larger than the {len(pixels)} images: lower --batch-size.")
        self.pixels = pixels
        self.batch_size = batch_size
        self.seed = seed
        self.look = look
        self.labels = labels
        self.num_images = len(pixels)

    def __call__(self, epoch: int) -> Iterator[Tensor]:
        """Yield the batches of one epoch, places (B,) on the device of the images."""
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
        """Return what the program observes of the images at these places, float (B, *pixels), with their labels."""
        x = self.look(self.pixels[batch])
        return x if self.labels is None else (x, self.labels[batch])
