r"""Images as uint8 tensors, one for each split, and what a program observes of their pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_vae.data.arrays import SHAPES
from pyro_vae.data.batches import Batches
from pyro_vae.data.labels import Labels
from pyro_vae.errors import DataError

_BINARIZATION_SEED = 20160301  # of every binarization that is drawn once
_PIXELS = 2**22  # that are turned into others at a time


@dataclass(frozen=True)
class Images:
    """The splits of a data set: uint8 tensors (N, *pixels), 0 to 255, and what is known of them, if anything."""

    name: str
    train: Tensor
    valid: Tensor
    test: Tensor
    labels: Labels | None = None

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
            if len(images) == 0:
                raise DataError(f"{self.name}: there are no {split} images.")
            if images.shape[1:] != self.train.shape[1:]:
                raise DataError(
                    f"{self.name}: {split} images are {tuple(images.shape[1:])}, "
                    f"training images {tuple(self.train.shape[1:])}."
                )
            if self.labels and (found := getattr(self.labels, split).shape) != (len(images), len(self.labels.names)):
                raise DataError(f"{self.name}: labels {tuple(found)} of {len(images)} {split} images.")
        if _highest(self.train) == 1:  # binarized pixels, of 0 and 1, would pass for 255 times too dark
            raise DataError(f"{self.name}: no training image has a pixel above 1; pixels go from 0 to 255.")

    def __str__(self) -> str:
        """Return one line: how many images of which shape, and their classes."""
        numbers = ", ".join(f"{len(getattr(self, split)):,} {split}" for split in ("train", "valid", "test"))
        shape = " x ".join(map(str, self.pixel_shape))
        classes = ""
        if self.labels is not None and self.labels.names == ("class",):
            classes = f", {1 + int(torch.cat([self.labels.train, self.labels.test]).max())} classes"
        return f"{self.name}: {numbers} images of {shape} pixels{classes}"

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return tuple(self.train.shape[1:])

    def first(self, split: str, number: int) -> Images:
        """Return the images with only the first so many of a split.

        Raises:
            DataError: there are not so many.
        """
        images = getattr(self, split)
        if not 0 < number <= len(images):
            raise DataError(f"{self.name}: {number} {split} images asked for, between 1 and {len(images)} are there.")
        labels = self.labels and replace(self.labels, **{split: getattr(self.labels, split)[:number]})
        return replace(self, labels=labels, **{split: images[:number]})

    def map(self, change: Callable[[Tensor], Tensor]) -> Images:
        """Return the images with every split changed."""
        return replace(self, train=change(self.train), valid=change(self.valid), test=change(self.test))

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

    pixels: Images
    """uint8, 0 and 255 alone where the binarization is drawn once."""
    binarize: str
    dequantize: bool = False
    """Whether gray levels are made continuous, for a density: x = (level + u) / 256 with u ~ U[0, 1). Theis, van den
    Oord, Bethge, "A note on the evaluation of generative models", ICLR 2016 (https://arxiv.org/abs/1511.01844)."""

    def under_density(self) -> Observed:
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
            pixels: of `pixels.train`.
            generator: of the CPU, for noise that is the same on every device; None takes torch's global stream.
        """
        if self.binarize != "dynamic" and not self.dequantize:
            return pixels / 255
        device = pixels.device if generator is None else "cpu"
        noise = torch.rand(pixels.shape, generator=generator, device=device).to(pixels.device)
        if self.binarize == "dynamic":  # which leaves 0 and 255 as they are
            return (noise * 255 < pixels).to(noise.dtype)
        # 16 bits of noise: with more, float32 rounds some white pixels up to the next level, to exactly 1.
        return (pixels + (noise * 65536).floor() / 65536) / 256

    def split(self, name: str) -> Tensor:
        """Return the images of a split, (N, *pixels), for evaluation: the same in every run."""
        generator = torch.Generator().manual_seed(_BINARIZATION_SEED)
        return _by_parts(getattr(self.pixels, name), lambda part: self.observe(part, generator))

    def batches(self, batch_size: int, seed: int = 0, labels: Tensor | None = None) -> Batches:
        """Return the batches of a fit; see `Batches`."""
        return Batches(self.pixels.train, batch_size, seed, self.observe, labels)


def _drawn_once(pixels: Tensor, stream: int) -> Tensor:
    generator = torch.Generator().manual_seed(_BINARIZATION_SEED + stream)

    def drawn(part: Tensor) -> Tensor:
        noise = torch.rand(part.shape, generator=generator, device="cpu").to(part.device)
        return 255 * (noise * 255 < part).byte()

    return _by_parts(pixels, drawn)


def _threshold(pixels: Tensor) -> Tensor:
    return _by_parts(pixels, lambda part: 255 * (part >= 128).byte())


def _parts(pixels: Tensor) -> Sequence[Tensor]:
    """Return images in parts of about `_PIXELS` pixels, since data may be larger than the memory."""
    return pixels.split(max(1, _PIXELS // pixels[0].numel()))


def _by_parts(pixels: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Return change(pixels), which is of their shape, made part by part: a generator goes on from each to the next."""
    result, end = None, 0
    for part in _parts(pixels):
        changed = change(part)
        result = changed.new_empty(pixels.shape) if result is None else result
        result[end : end + len(part)] = changed
        end += len(part)
    assert result is not None
    return result


def _highest(pixels: Tensor) -> int:
    """Return the highest pixel, or one above 1: most images need not be read to find one."""
    highest = 0
    for part in _parts(pixels):
        highest = max(highest, int(part.max()))
        if highest > 1:
            break
    return highest
