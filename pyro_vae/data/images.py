r"""Data sets of images as uint8 tensors, and the binarized or dequantized values that a program observes."""

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

_BINARIZATION_SEED = 20160301  # for binarization that is sampled only once


@dataclass(frozen=True)
class Images(Collection):
    """A data set of images: uint8 tensors (N, *pixels) with values 0 to 255, one per split, and optional labels."""

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
        if _highest(self.train) == 1:  # binarized pixels 0 and 1, instead of 0 and 255, would be read as almost black
            raise DataError(f"{self.name}: no training image has a pixel above 1; expected values from 0 to 255.")

    def _described(self) -> str:
        one_channel = len(self.pixel_shape) < 3 or self.pixel_shape[0] == 1
        levels = {"binary": "black or white", "gray": "gray" if one_channel else "8-bit", "color": "color"}[self.kind]
        return " x ".join(map(str, self.pixel_shape)) + f" {levels} pixels"

    @cached_property
    def kind(self) -> str:
        """``binary`` if all training pixels are 0 or 255, ``color`` if there are three channels, ``gray`` otherwise."""
        # Subtracting 1 modulo 256 maps 0 and 255 to the two largest values: one pass instead of three.
        if all(int((part - 1).min()) >= 254 for part in split_images(self.train)):
            return "binary"
        return "color" if len(self.pixel_shape) == 3 and self.pixel_shape[0] == 3 else "gray"

    def observed(self, binarize: str = "dynamic") -> Observed:
        """Return the images as observed by a program.

        Args:
            binarize: ``dynamic``: x ~ Bernoulli(gray / 255), sampled again for each batch of training images, and once
                for validation and test images. ``fixed``: sampled once for all images. ``threshold``: x = 1 if gray >=
                128. ``none``: gray levels. Pixels that are sampled once depend only on the image and on its index in
                the split.

        Raises:
            DataError: If the binarization is unknown.
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
    """Images as observed by a program: floats in [0, 1] of torch's default dtype. See `Images.observed`."""

    pixels: Collection
    """The data. Images are uint8, with pixels 0 or 255 in the splits whose binarization is sampled only once."""
    binarize: str
    dequantize: bool = False
    """Whether gray levels are made continuous, for a density: x = (level + u) / 256 with u ~ U[0, 1). Theis, van den
    Oord, Bethge, "A note on the evaluation of generative models", ICLR 2016 (https://arxiv.org/abs/1511.01844)."""
    device: torch.device | None = None
    """Device on which the program observes the images. None for the device of `pixels`."""

    level_bits: ClassVar[int | None] = 8
    """Number b of bits per level: a dequantized level covers an interval of width 2^-b. None for real numbers."""

    def with_dequantization(self) -> Observed:
        """Return the images as observed by a program whose likelihood is a density.

        Raises:
            DataError: If the pixels are binarized, since a density of discrete values is unbounded.
        """
        if self.binarize != "none":
            raise DataError(
                f"The likelihood is a density, but --binarize {self.binarize} gives 0 and 1: use --binarize none."
            )
        return replace(self, dequantize=True)

    def observe(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Binarize or dequantize training pixels.

        Args:
            pixels: uint8, shape (B, *pixels), on any device.
            generator: CPU generator of the noise, which is then the same on every device. None uses the global
                generator.

        Returns:
            Observed values, float, shape (B, *pixels).
        """
        pixels = self._placed(pixels)
        if self.binarize != "dynamic" and not self.dequantize:
            return pixels / 255
        device = pixels.device if generator is None else "cpu"
        noise = torch.rand(pixels.shape, generator=generator, device=device).to(pixels.device)
        if self.binarize == "dynamic":  # leaves 0 and 255 unchanged
            return (noise * 255 < pixels).to(noise.dtype)
        # Use 16 bits of noise: with more, float32 rounds some white pixels up to exactly 1, beyond the last level.
        return (pixels + (noise * 65536).floor() / 65536) / 256

    def example(self) -> Tensor:
        """Return the first training image without noise, (1, *pixels), to trace a program of unknown likelihood."""
        return self._placed(self.pixels.train[:1]) / 255

    def split(self, name: str) -> Tensor:
        """Return the observed images of a split for evaluation, shape (N, *pixels). They are the same in every run.

        On the CPU, large splits are kept in a memory-mapped temporary file; see `storage.empty`.
        """
        generator = torch.Generator().manual_seed(_BINARIZATION_SEED)
        return _by_parts(getattr(self.pixels, name), lambda part: self.observe(part, generator))

    def batches(self, batch_size: int, seed: int = 0, labels: Tensor | None = None) -> Batches:
        """Return the batches of training images for a fit, streamed to `device` if the images are on another one."""
        pixels = self.pixels.train
        if self.device is None or self.device == pixels.device:
            return Batches(pixels, batch_size, seed, self.observe, labels)
        return StreamedBatches(pixels, batch_size, seed, self.observe, labels, device=self.device)

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
    """Return change(pixels), of the same shape, computed part by part. A generator in `change` continues its stream."""
    result, end = None, 0
    for part in split_images(pixels):
        changed = change(part)
        result = empty(pixels.shape, changed) if result is None else result
        result[end : end + len(part)] = changed
        end += len(part)
    assert result is not None
    return result


def _highest(pixels: Tensor) -> int:
    """Return the largest pixel, or any pixel above 1, which is usually found in the first part."""
    highest = 0
    for part in split_images(pixels):
        highest = max(highest, int(part.max()))
        if highest > 1:
            break
    return highest
