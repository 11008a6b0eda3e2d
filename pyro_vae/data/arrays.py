r"""Conversion of arrays of pixels to uint8 tensors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pyro_vae.errors import DataError

_TYPES = "use torch.uint8, or floats in [0, 1]."
SHAPES = "have shape {}; it must be (N, *pixels)."


def to_uint8(images: Tensor | np.ndarray, name: str = "images", first: int = 0) -> Tensor:
    """Return pixels as a uint8 tensor with values 0 to 255.

    Floating-point pixels are multiplied by 255 and rounded.

    Args:
        images: Pixels, uint8 or floating point in [0, 1], shape (N, *pixels). Arrays may have any byte order and memory
            layout.
        name: Name of the images in error messages.
        first: Index of the first image in error messages, if the images are a chunk of a larger array.

    Raises:
        DataError: If a pixel is NaN, masked or outside [0, 1], the dtype is not supported, or there are no pixels.
    """
    images = images if isinstance(images, Tensor) else _to_tensor(images, name)
    if images.ndim < 2 or 0 in images.shape[1:]:
        raise DataError(f"{name}: images {SHAPES.format(tuple(images.shape))}")
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise DataError(f"{name}: pixels are {images.dtype}; {_TYPES}")
    bad = ~((images >= 0) & (images <= 1))
    if bad.any():
        image = first + int(bad.flatten(1).any(1).nonzero()[0])
        value = images[bad][0].item()
        raise DataError(f"{name}: image {image} holds {value:.6g}; floating-point pixels must lie in [0, 1].")
    return (images * 255).round().to(torch.uint8)


def _to_tensor(images: np.ndarray, name: str) -> Tensor:
    if np.ma.is_masked(images):
        raise DataError(f"{name}: some pixels are masked; fill them first.")
    try:
        array = np.asarray(images)
    except ValueError as error:
        raise DataError(f"{name}: not an array (N, *pixels); the images differ in shape.") from error
    try:
        # Torch supports neither foreign byte orders nor negative strides, and warns about read-only memory.
        return torch.as_tensor(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))
    except TypeError as error:
        raise DataError(f"{name}: pixels are {array.dtype}; {_TYPES}") from error
