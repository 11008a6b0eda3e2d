r"""MNIST's file format, IDX: a magic number, the shape as big-endian 32-bit integers, and the content in bytes."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.named.files import REMEDY, read_bytes
from pyro_vae.errors import DataError

_SHAPE = (28, 28)
# Number of images in each split, and SHA-256 of the original MNIST files.
SIZES = {"train": 60_000, "t10k": 10_000}
DIGESTS = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def read_split(raw: Path, split: str, min_images: int, verify_digest: bool) -> tuple[Tensor, Tensor]:
    """Read the images and labels of a split, and verify MNIST's digests if it has as many images.

    Args:
        raw: Folder of the files.
        split: A key of `SIZES`.
        min_images: Minimum number of images.
        verify_digest: Whether the files claim to be the original MNIST.

    Returns:
        Pixels, uint8, shape (N, 28, 28), and classes, int64, shape (N, 1).

    Raises:
        DataError: If a file cannot be read, is damaged, has other contents, or is not the original MNIST file. The
            message names the file.
    """
    images, labels = (raw / name for name in DIGESTS if name.startswith(split))
    pixels, classes, digests = read_pair(images, labels, min_images)
    if verify_digest and len(pixels) == SIZES[split]:
        for path, digest in zip((images, labels), digests, strict=True):
            if digest != DIGESTS[path.name]:
                difference = f"its SHA-256 is {digest}, not {DIGESTS[path.name]}"
                raise DataError(f"{path} is not the original MNIST file: {difference}. {REMEDY}")
    return pixels, classes


def read_pair(
    images: Path, labels: Path, min_images: int, num_classes: int = 10
) -> tuple[Tensor, Tensor, tuple[str, str]]:
    """Read a file of images and the file of their labels.

    Args:
        images: File of the images.
        labels: File of the labels.
        min_images: Minimum number of images.
        num_classes: Number of classes. Labels are 0 to `num_classes` - 1.

    Returns:
        Pixels, uint8, shape (N, 28, 28), classes, int64, shape (N, 1), and the SHA-256 of both files.

    Raises:
        DataError: If a file cannot be read, is damaged or has other contents. The message names the file.
    """
    (pixels, digest), (classes, digest_of_classes) = _read(images, 3), _read(labels, 1)
    if pixels.shape[1:] != _SHAPE:
        raise DataError(f"{images} holds images of shape {pixels.shape[1:]}, not {_SHAPE}. {REMEDY}")
    if len(pixels) < min_images:
        raise DataError(f"{images} holds {len(pixels)} images, but at least {min_images} are required. {REMEDY}")
    if len(classes) != len(pixels):
        raise DataError(f"{labels} holds {len(classes)} labels for {len(pixels)} images. {REMEDY}")
    if classes.max() >= num_classes:
        raise DataError(f"{labels} holds a label {classes.max()}, not 0 to {num_classes - 1}. {REMEDY}")
    return torch.as_tensor(pixels), torch.as_tensor(classes).long().unsqueeze(1), (digest, digest_of_classes)


def _read(path: Path, num_dims: int) -> tuple[np.ndarray, str]:
    content = read_bytes(path)
    magic, start = bytes((0, 0, 8, num_dims)), 4 + 4 * num_dims
    if (actual := content[:4].tobytes()) != magic:
        hint = ": it is compressed, gunzip it" if actual.startswith(b"\x1f\x8b") else ""
        raise DataError(f"{path} begins with {actual.hex() or 'nothing'} instead of {magic.hex()}{hint}. {REMEDY}")
    if len(content) < start:
        raise DataError(f"{path} is truncated in its header. {REMEDY}")
    shape = content[4:start].view(">u4").tolist()
    if len(content) != (size := start + math.prod(shape)):
        raise DataError(f"{path} has {len(content)} bytes instead of {size}. {REMEDY}")
    return content[start:].reshape(shape), hashlib.sha256(content.data).hexdigest()
