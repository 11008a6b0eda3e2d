r"""Splits of data by a hash of the content of each item, for data that are not split already."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from pyro_vae.errors import DataError

Shares = Sequence[float]
# Descriptions of how a data set was split.
GIVEN, HELD_OUT, BY_CONTENT = "split as given", "validation data split off by their content", "split by their content"
OWN_SPLITS = (0.8, 0.1, 0.1)  # default fractions of training, validation and test data, for your own data


def split_by_content(images: Tensor, shares: Shares, name: str) -> tuple[Tensor, ...]:
    """Split images pseudorandomly, each by a hash of its own pixels.

    The hash of an image is a number in [0, 1), which is compared with the cumulative fractions of the splits. The split
    of an image therefore does not change when other images are added, removed or reordered, and identical images are
    always in the same split.

    Args:
        images: Images, uint8, shape (N, *pixels).
        shares: Fractions of the splits. They must be positive and sum to 1.
        name: Name of the images in error messages.

    Returns:
        Indices of the images in each split, in increasing order.

    Raises:
        DataError: If the fractions are invalid, or a split would be empty.
    """
    return split_by_hash(content_hashes(images), shares, name)


def split_by_hash(hashes: Tensor, shares: Shares, name: str) -> tuple[Tensor, ...]:
    """Split images by their `content_hashes` (N,). See `split_by_content` for the other arguments and the errors."""
    if not all(share > 0 for share in shares) or not math.isclose(sum(shares), 1.0):
        raise DataError(f"{name}: the fractions of the splits are {tuple(shares)}; they must be positive and sum to 1.")
    bounds = torch.tensor(list(shares), dtype=torch.float64).cumsum(0)[:-1]
    split_of = torch.bucketize(hashes, bounds, right=True)
    splits = tuple((split_of == split).nonzero().flatten() for split in range(len(shares)))
    if empty := [split for split, indices in enumerate(splits) if not len(indices)]:
        raise DataError(
            f"{name}: of {len(hashes)} items, none falls into the split of fraction {shares[empty[0]]:g}: "
            "give more data, or define the splits."
        )
    return splits


def drop_test_share(splits: Shares) -> Shares:
    """Return the fractions of training and validation images, rescaled to sum to 1, if test images are given."""
    both = splits[0] + splits[1]
    return splits[0] / both, splits[1] / both


def content_hashes(images: Tensor) -> Tensor:
    """Return a hash in [0, 1) of the pixels of each image, uint8 (N, *pixels), as float64 (N,)."""
    return hash_images(image for part in images.split(1000) for image in part.cpu().numpy())


def hash_images(images: Iterable[np.ndarray]) -> Tensor:
    """Return the `content_hashes` of an iterable of images (*pixels)."""
    digests = (blake2b(image.tobytes(), digest_size=8).digest() for image in images)
    # Use 53 bits, so that the division is exact and never gives 1.
    return torch.tensor([(int.from_bytes(digest, "big") >> 11) / 2**53 for digest in digests], dtype=torch.float64)
