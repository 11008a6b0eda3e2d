r"""Splits and order of decoded images, both determined by their content."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.assembly import encode_classes
from pyro_vae.data.formats.decoding import Store, as_channels
from pyro_vae.data.images import Images
from pyro_vae.data.labels import Labels
from pyro_vae.data.splits import BY_CONTENT, GIVEN, HELD_OUT, Shares, drop_test_share, hash_images, split_by_hash

SPLITS = ("train", "valid", "test")


class Arranged(NamedTuple):
    """Splits and order of decoded images."""

    shape: tuple[int, ...]
    """Shape of an image, (height, width) or (3, height, width)."""
    indices: tuple[Tensor, ...]
    """For each split, the indices of its images in the store, in order."""
    codes: Tensor | None
    """Encoded labels of all splits, concatenated, shape (N, 1)."""
    how_split: str
    """Description of how the data were split; see `Collection`."""

    @property
    def sizes(self) -> list[int]:
        """Numbers of training, validation and test images."""
        return [len(indices) for indices in self.indices]

    def images(self, store: Store, indices: Tensor) -> Iterator[np.ndarray]:
        """Yield the images with these indices in the store."""
        for index in indices.tolist():
            yield as_channels(store[index], 3 if len(self.shape) == 3 else 1)

    def stacked(self, store: Store) -> list[Tensor]:
        """Return the images of each split as a tensor (N, *pixels)."""
        return [self._stack(store, indices) for indices in self.indices]

    def _stack(self, store: Store, indices: Tensor) -> Tensor:
        pixels = np.empty((len(indices), *self.shape), np.uint8)
        for target, image in zip(pixels, self.images(store, indices), strict=True):
            target[:] = image
        return torch.from_numpy(pixels)


def arrange(
    store: Store,
    channels: int,
    splits: Sequence[str] | None,
    classes: Sequence[Any] | None,
    *,
    number: int,
    shares: Shares,
    name: str,
) -> Arranged:
    """Determine the splits and the order of images.

    Files are often sorted by class. Within each split, images are therefore sorted by the hash of their content, so
    that the first N images are a random sample, which hardly changes when images are added.

    Args:
        store: The decoded images.
        channels: Number of channels, 1 or 3.
        splits: Split of each image, one of `SPLITS`. If None, images are split by their content. If no image is in
            "valid", validation images are split off from the training images.
        classes: Class of each image, integers or strings, or None.
        number: Number of images.
        shares: Fractions of training, validation and test images; see `from_arrays`.
        name: Name of the images in error messages.

    Raises:
        DataError: If the splits or the classes are invalid; see `split_by_hash` and `encode_classes`.
    """
    hashes = hash_images(as_channels(store[index], channels) for index in range(number))
    order = hashes.argsort(stable=True)
    if splits is None:
        how_split = BY_CONTENT
        indices = tuple(order[indices] for indices in split_by_hash(hashes[order], shares, name))
    else:
        how_split = GIVEN if "valid" in splits else HELD_OUT
        at = {split: torch.tensor([i for i in order.tolist() if splits[i] == split]).long() for split in SPLITS}
        if not len(at["valid"]):
            kept, held_out = split_by_hash(hashes[at["train"]], drop_test_share(shares), name)
            at["train"], at["valid"] = at["train"][kept], at["train"][held_out]
        indices = tuple(at[split] for split in SPLITS)
    codes = encode_classes(name, (classes, range(number)))
    codes = None if codes is None else codes[torch.cat(indices)]
    return Arranged(as_channels(store[0], channels).shape, indices, codes, how_split)


def make_images(name: str, parts: Sequence[Tensor], codes: Tensor | None, how_split: str) -> Images:
    """Return a data set from training, validation and test images and the fields of `Arranged`."""
    train, valid, test = parts
    labels = None if codes is None else Labels(("class",), *codes.split([len(part) for part in parts]))
    return Images(name, train, valid, test, labels, how_split)
