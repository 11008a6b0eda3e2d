r"""Splits of images that come without one: by a hash of what an image holds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from pyro_vae.errors import DataError

Shares = Sequence[float]
# How a data set has come to its splits, in words.
GIVEN, HELD_OUT, BY_CONTENT = "split as given", "validation data split off by their content", "split by their content"
OWN_SPLITS = (0.8, 0.1, 0.1)  # training, validation and test data of a user's own


def split_by_content(images: Tensor, shares: Shares, name: str) -> tuple[Tensor, ...]:
    """Split images at random, each by its own pixels.

    A hash of its pixels, as a number between 0 and 1, says where an image belongs. So an image stays where it is when
    others are added or removed, whatever their order, and two that are alike are never on both sides of a split.

    Args:
        images: uint8 (N, *pixels).
        shares: of the splits; they sum to 1, and none is 0.
        name: what an error calls the images.

    Returns:
        The indices of each split, in the order of the images.

    Raises:
        DataError: the shares are not such, or a split holds no image.
    """
    return split_by_hash(content_hashes(images), shares, name)


def split_by_hash(hashes: Tensor, shares: Shares, name: str) -> tuple[Tensor, ...]:
    """Split images as `split_by_content` does, by their `content_hashes` (N,)."""
    if not all(share > 0 for share in shares) or not math.isclose(sum(shares), 1.0):
        raise DataError(f"{name}: shares {tuple(shares)} of the splits; they must be positive and sum to 1.")
    bounds = torch.tensor(list(shares), dtype=torch.float64).cumsum(0)[:-1]
    place = torch.bucketize(hashes, bounds, right=True)
    found = tuple((place == split).nonzero().flatten() for split in range(len(shares)))
    if empty := [split for split, indices in enumerate(found) if not len(indices)]:
        raise DataError(
            f"{name}: of {len(hashes)} items none falls into the split of share {shares[empty[0]]:g}: "
            "give more data, or the splits yourself."
        )
    return found


def drop_test_share(splits: Shares) -> Shares:
    """Return the shares of training and validation images where the test images are given."""
    both = splits[0] + splits[1]
    return splits[0] / both, splits[1] / both


def content_hashes(images: Tensor) -> Tensor:
    """Return a number in [0, 1) for each image, uint8 (N, *pixels), that its pixels alone decide: float64 (N,)."""
    return hash_images(image for part in images.split(1000) for image in part.cpu().numpy())


def hash_images(images: Iterable[np.ndarray]) -> Tensor:
    """Return `content_hashes` of images (*pixels) that come one by one."""
    digests = (blake2b(image.tobytes(), digest_size=8).digest() for image in images)
    # 53 bits, so that the division is exact and never gives 1.
    return torch.tensor([(int.from_bytes(each, "big") >> 11) / 2**53 for each in digests], dtype=torch.float64)
