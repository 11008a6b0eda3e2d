r"""Decoded images in their splits and their order, which their content decides."""

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
    """The order of decoded images."""

    shape: tuple[int, ...]
    """Of an image, (height, width) or (3, height, width)."""
    places: tuple[Tensor, ...]
    """Where the images of each split are in the store, in their order."""
    codes: Tensor | None
    """Labels of all splits one after the other, (N, 1)."""
    how_split: str
    """See `Collection`."""

    @property
    def sizes(self) -> list[int]:
        """Numbers of training, validation and test images."""
        return [len(place) for place in self.places]

    def images(self, store: Store, place: Tensor) -> Iterator[np.ndarray]:
        """Yield the images at places in the store."""
        for index in place.tolist():
            yield as_channels(store[index], 3 if len(self.shape) == 3 else 1)

    def stacked(self, store: Store) -> list[Tensor]:
        """Return the images of each split, (N, *pixels)."""
        return [self._stack(store, place) for place in self.places]

    def _stack(self, store: Store, place: Tensor) -> Tensor:
        pixels = np.empty((len(place), *self.shape), np.uint8)
        for target, image in zip(pixels, self.images(store, place), strict=True):
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
    """Find the splits and the order of images.

    They may come class by class. In the order of a hash the first images of a split are a sample of all, and the same
    ones when images are added.

    Args:
        store: the images.
        channels: 1 or 3.
        splits: of each image, one of `SPLITS`; None: they are split by their content. Where none is of "valid",
            validation images are taken from the training images.
        classes: of each image, integers or words, or None.
        number: of images.
        shares: of training, validation and test images; see `from_arrays`.
        name: what an error calls the images.

    Raises:
        DataError: see `split_by_hash` and `encode_classes`.
    """
    hashes = hash_images(as_channels(store[index], channels) for index in range(number))
    order = hashes.argsort(stable=True)
    if splits is None:
        how_split = BY_CONTENT
        places = tuple(order[place] for place in split_by_hash(hashes[order], shares, name))
    else:
        how_split = GIVEN if "valid" in splits else HELD_OUT
        at = {each: torch.tensor([i for i in order.tolist() if splits[i] == each]).long() for each in SPLITS}
        if not len(at["valid"]):
            kept, held_out = split_by_hash(hashes[at["train"]], drop_test_share(shares), name)
            at["train"], at["valid"] = at["train"][kept], at["train"][held_out]
        places = tuple(at[each] for each in SPLITS)
    codes = encode_classes(name, (classes, range(number)))
    codes = None if codes is None else codes[torch.cat(places)]
    return Arranged(as_channels(store[0], channels).shape, places, codes, how_split)


def make_images(name: str, parts: Sequence[Tensor], codes: Tensor | None, how_split: str) -> Images:
    """Return a data set of training, validation and test images, the labels of all and how_split as of `Arranged`."""
    train, valid, test = parts
    labels = None if codes is None else Labels(("class",), *codes.split([len(part) for part in parts]))
    return Images(name, train, valid, test, labels, how_split)
