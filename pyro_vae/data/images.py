r"""Images as uint8 tensors, one for each split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


class DataError(ValueError):
    """Images that cannot be used; says which and what to do."""


@dataclass(frozen=True)
class Images:
    """The splits of a data set: uint8 tensors (N, *pixels), 0 to 255."""

    name: str
    train: Tensor
    valid: Tensor
    test: Tensor

    def __post_init__(self) -> None:
        for split in ("train", "valid", "test"):
            images = getattr(self, split)
            if images.dtype != torch.uint8:
                raise DataError(f"{self.name}: {split} images are {images.dtype}; they must be torch.uint8.")
            if len(images) == 0:
                raise DataError(f"{self.name}: there are no {split} images.")
            if images.shape[1:] != self.train.shape[1:]:
                raise DataError(
                    f"{self.name}: {split} images are {tuple(images.shape[1:])}, "
                    f"training images {tuple(self.train.shape[1:])}."
                )

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return tuple(self.train.shape[1:])

    def map(self, change: Callable[[Tensor], Tensor]) -> Images:
        """Return the images with every split changed."""
        return replace(self, train=change(self.train), valid=change(self.valid), test=change(self.test))


def to_uint8(images: Tensor | np.ndarray, name: str = "images") -> Tensor:
    """Return pixels as uint8, 0 to 255.

    Args:
        images: uint8, or floating point in [0, 1].
        name: what an error calls them.

    Raises:
        DataError: a pixel is NaN or outside [0, 1], or the type is neither.
    """
    images = torch.as_tensor(images)
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise DataError(f"{name}: pixels are {images.dtype}; give torch.uint8, or floats in [0, 1].")
    bad = ~((images >= 0) & (images <= 1))
    if bad.any():
        image = int(bad.flatten(1).any(1).nonzero()[0])
        value = images[bad][0].item()
        raise DataError(f"{name}: image {image} holds {value:.6g}; floating-point pixels must lie in [0, 1].")
    return (images * 255).round().to(torch.uint8)
