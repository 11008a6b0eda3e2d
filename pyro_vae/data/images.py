r"""Images as uint8 tensors, one for each split, and what a program observes of their pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from pyro_vae.data.arrays import SHAPES
from pyro_vae.data.batches import Batches, StreamedBatches
from pyro_vae.data.collection import Collection
from pyro_vae.data.storage import empty
from pyro_vae.errors import DataError
from pyro_vae.memory import split_images

_BINARIZATION_SEED = 20160301  # of every binarization that is drawn once


@dataclass(frozen=True)
class Images(Collection):
    """The splits of a data set of images: uint8 tensors (N, *pixels), 0 to 255, and their labels, if there are some."""

    items: ClassVar[str] = "images"

    def __post_init__(self) -> None:
        for split in ("train", "valid", "test"):
            images = getattr(self, split)
            if not isinstance(images, Tensor):
                kind = type(images).__name__
                raise DataError(f"{self.name}: {split} images are of type {kind}; make tensors with data.to_uint8.")
            if images.dtype != torch.uint8:
                raise DataError(f"{self.name}: {split} images are {images.dtype}; they must be torch.uint8.")
            if images.ndim < 2 or 0 in images.shape[1:]:
                raise DataError(f"{self.name}: {split} images {SHAPES.format(tuple(images.shape))}")
        super().__post_init__()
        if _highest(self.train) == 1:  # binarized pixels, of 0 and 1, would pass for 255 times too dark
            raise DataError(f"{self.name}: no training image has a pixel above 1; pixels go from 0 to 255.")

    def _described(self) -> str:
        one_channel = len(self.pixel_shape) < 3 or self.pixel_shape[0] == 1
        levels = {"binary": "black or white", "gray": "gray" if one_channel else "8-bit", "color": "color"}[self.kind]
        return " x ".join(map(str, self.pixel_shape)) + f" {levels} pixels"

    @cached_property
    def kind(self) -> str:
        """``binary`` where every training pixel is 0 or 255, ``color`` of three channels, otherwise ``gray``."""
        # Minus 1, modulo 256, takes 0 and 255 to the two highest values: one pass instead of three.
        if all(int((part - 1).min()) >= 254 for part in split_images(self.train)):
            return "binary"
        return "color" if len(self.pixel_shape) == 3 and self.pixel_shape[0] == 3 else "gray"

    def observed(self, binarize: str = "dynamic") -> Observed:
        """Return the images as a program observes them.

        Args:
            binarize: ``dynamic``, pixels x ~ Bernoulli(gray / 255), the training images anew in each batch and the
                others once; ``fixed``, all once; ``threshold``, gray >= 128; ``none``, gray pixels. What is drawn once
                depends on the index of the image in its split alone.

        Raises:
            DataError: unknown binarization.
        """
        if binarize not in BINARIZATIONS:
            raise DataError(f"Unknown binarization {binarize!r}; choose one of {', '.join(BINARIZATIONS)}.")
        if binarize == "threshold":
            return Observed(self.map(_threshold), binarize)
        if binarize == "none":
            return Observed(self, binarize)
        drawn = replace(
            self,
            train=self.train if binarize == "dynamic" else _drawn_once(self.train, 0),
            valid=_drawn_once(self.valid, 1),
            test=_drawn_once(self.test, 2),
        )
        return Observed(drawn, binarize)


BINARIZATIONS = ("dynamic", "fixed", "threshold", "none")


@dataclass(frozen=True)
class Observed:
    """Images as a program observes them: floats in [0, 1] of torch's default type; see `Images.observed`."""

    pixels: Collection
    """Pixels are uint8, 0 and 255 alone where the binarization is drawn once."""
    binarize: str
    dequantize: bool = False
    """Whether gray levels are made continuous, for a density: x = (level + u) / 256 with u ~ U[0, 1). Theis, van den
    Oord, Bethge, "A note on the evaluation of generative models", ICLR 2016 (https://arxiv.org/abs/1511.01844)."""
    device: torch.device | None = None
    """The device on which the program observes them; None for the device of the pixels."""

    level_bits: ClassVar[int | None] = 8
    """Bits of a level, the interval over which a dequantized value is spread out; None of real numbers."""

    def with_dequantization(self) -> Observed:
        """Return the images as a program observes them under a density.

        Raises:
            DataError: the pixels are binarized; their density has no bound and means nothing.
        """
        if self.binarize != "none":
            raise DataError(
                f"The likelihood is a density and --binarize {self.binarize} gives 0 and 1: use --binarize none."
            )
        return replace(self, dequantize=True)

    def observe(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Turn training pixels, uint8 (B, *pixels), into what the program observes of them.

        Args:
            pixels: uint8 (B, *pixels), on any device.
            generator: of the CPU, for noise that is the same on every device; None takes torch's global stream.
        """
        pixels = self._placed(pixels)
        if self.binarize != "dynamic" and not self.dequantize:
            return pixels / 255
        device = pixels.device if generator is None else "cpu"
        noise = torch.rand(pixels.shape, generator=generator, device=device).to(pixels.device)
        if self.binarize == "dynamic":  # which leaves 0 and 255 as they are
            return (noise * 255 < pixels).to(noise.dtype)
        # 16 bits of noise: with more, float32 rounds some white pixels up to the next level, to exactly 1.
        return (pixels + (noise * 65536).floor() / 65536) / 256

    def example(self) -> Tensor:
        """Return the first training image without noise, (1, *pixels), for a program of which nothing is known yet."""
        return self._placed(self.pixels.train[:1]) / 255

    def split(self, name: str) -> Tensor:
        """Return the images of a split, (N, *pixels), for evaluation: the same in every run.

        On the CPU, large splits are kept in a temporary file that is mapped into memory; see `storage.empty`.
        """
        generator = torch.Generator().manual_seed(_BINARIZATION_SEED)
        return _by_parts(getattr(self.pixels, name), lambda part: self.observe(part, generator))

    def batches(self, batch_size: int, seed: int = 0, labels: Tensor | None = None) -> Batches:
        """Return the batches of a fit; see `Batches`."""
        pixels = self.pixels.train
        if self.device is None or self.device == pixels.device:
            return Batches(pixels, batch_size, seed, self.observe, labels)
        return StreamedBatches(pixels, batch_size, seed, self.observe, labels, self.device)

    def _placed(self, pixels: Tensor) -> Tensor:
        return pixels if self.device is None else pixels.to(self.device, non_blocking=True)


def _drawn_once(pixels: Tensor, stream: int) -> Tensor:
    generator = torch.Generator().manual_seed(_BINARIZATION_SEED + stream)

    def drawn(part: Tensor) -> Tensor:
        noise = torch.rand(part.shape, generator=generator, device="cpu").to(part.device)
        return 255 * (noise * 255 < part).byte()

    return _by_parts(pixels, drawn)


def _threshold(pixels: Tensor) -> Tensor:
    return _by_parts(pixels, lambda part: 255 * (part >= 128).byte())


def _by_parts(pixels: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Return change(pixels), which is of their shape, made part by part: a generator goes on from each to the next."""
    result, end = None, 0
    for part in split_images(pixels):
        changed = change(part)
        result = empty(pixels.shape, changed) if result is None else result
        result[end : end + len(part)] = changed
        end += len(part)
    assert result is not None
    return result


def _highest(pixels: Tensor) -> int:
    """Return the highest pixel, or one above 1: most images need not be read to find one."""
    highest = 0
    for part in split_images(pixels):
        highest = max(highest, int(part.max()))
        if highest > 1:
            break
    return highest
