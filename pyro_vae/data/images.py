r"""Images as uint8 tensors, one for each split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pyro_vae.errors import UserError

_TYPES = "give torch.uint8, or floats in [0, 1]."
_SHAPES = "have shape {}; it must be (N, *pixels)."


class DataError(UserError):
    """Images that cannot be used; says which and what to do."""


@dataclass(frozen=True)
class Labels:
    """What is known of the images of each split: F integers from 0 on, (N, F), and their names."""

    names: tuple[str, ...]
    train: Tensor
    valid: Tensor
    test: Tensor

    def beside(self, split: str) -> Tensor:
        """Return what a program is given beside the images of a split: (N,), or (N, F) where there are several."""
        labels: Tensor = getattr(self, split)
        return labels[:, 0] if len(self.names) == 1 else labels

    def of(self, name: str, split: str) -> Tensor:
        """Return the labels of one name (N,)."""
        return getattr(self, split)[:, self.names.index(name)]


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
                raise DataError(f"{self.name}: {split} images {_SHAPES.format(tuple(images.shape))}")
            if len(images) == 0:
                raise DataError(f"{self.name}: there are no {split} images.")
            if images.shape[1:] != self.train.shape[1:]:
                raise DataError(
                    f"{self.name}: {split} images are {tuple(images.shape[1:])}, "
                    f"training images {tuple(self.train.shape[1:])}."
                )
            if self.labels and (found := getattr(self.labels, split).shape) != (len(images), len(self.labels.names)):
                raise DataError(f"{self.name}: labels {tuple(found)} of {len(images)} {split} images.")
        if self.train.max() == 1:  # binarized pixels, of 0 and 1, would pass for 255 times too dark
            raise DataError(f"{self.name}: no training image has a pixel above 1; pixels go from 0 to 255.")

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


def to_uint8(images: Tensor | np.ndarray, name: str = "images") -> Tensor:
    """Return pixels as uint8, 0 to 255.

    Args:
        images: (N, *pixels), uint8, or floating point in [0, 1]; arrays of any byte order and memory layout.
        name: what an error calls them.

    Raises:
        DataError: a pixel is NaN, masked or outside [0, 1], the type is neither, or there are no pixels.
    """
    images = images if isinstance(images, Tensor) else _to_tensor(images, name)
    if images.ndim < 2 or 0 in images.shape[1:]:
        raise DataError(f"{name}: images {_SHAPES.format(tuple(images.shape))}")
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise DataError(f"{name}: pixels are {images.dtype}; {_TYPES}")
    bad = ~((images >= 0) & (images <= 1))
    if bad.any():
        image = int(bad.flatten(1).any(1).nonzero()[0])
        value = images[bad][0].item()
        raise DataError(f"{name}: image {image} holds {value:.6g}; floating-point pixels must lie in [0, 1].")
    return (images * 255).round().to(torch.uint8)


def _to_tensor(images: np.ndarray, name: str) -> Tensor:
    if np.ma.is_masked(images):
        raise DataError(f"{name}: some pixels are masked; fill them first.")
    try:
        array = np.asarray(images)
    except ValueError as error:
        raise DataError(f"{name}: no array (N, *pixels); the images differ in shape.") from error
    try:
        # Torch reads neither another byte order nor a negative stride, and warns of memory that it may not write.
        return torch.as_tensor(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))
    except TypeError as error:
        raise DataError(f"{name}: pixels are {array.dtype}; {_TYPES}") from error
