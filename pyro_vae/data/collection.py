r"""Base class of data sets: one tensor per split, and labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, TypeVar

import torch
from torch import Tensor

from pyro_vae.data.labels import Labels
from pyro_vae.errors import DataError

if TYPE_CHECKING:
    from pyro_vae.data.images import Observed

_C = TypeVar("_C", bound="Collection")


@dataclass(frozen=True)
class Collection(ABC):
    """Training, validation and test data, shape (N, *shape) each, with optional labels.

    Raises:
        DataError: If the splits differ in the shape of an item, a split is empty, or the labels do not have one row per
            item.
    """

    items: ClassVar[str] = "items"
    """Plural noun for the items in messages: images, rows."""

    name: str
    train: Tensor
    valid: Tensor
    test: Tensor
    labels: Labels | None = None
    how_split: str = ""
    """Description of how your own data were split, e.g. "split by their content"; empty for named data sets."""

    def __post_init__(self) -> None:
        for split in ("train", "valid", "test"):
            values = getattr(self, split)
            if len(values) == 0:
                raise DataError(f"{self.name}: there are no {split} {self.items}.")
            if values.shape[1:] != self.train.shape[1:]:
                raise DataError(
                    f"{self.name}: {split} {self.items} are {tuple(values.shape[1:])}, "
                    f"training {self.items} {tuple(self.train.shape[1:])}."
                )
            if self.labels and (shape := getattr(self.labels, split).shape) != (len(values), len(self.labels.names)):
                raise DataError(f"{self.name}: labels {tuple(shape)} do not match {len(values)} {split} {self.items}.")

    def __str__(self) -> str:
        """Return a one-line description: number, shape and kind of the items, classes, and how they were split."""
        numbers = ", ".join(f"{len(getattr(self, split)):,} {split}" for split in ("train", "valid", "test"))
        classes = ""
        if self.labels is not None and self.labels.names == ("class",):
            classes = f", {1 + int(torch.cat([self.labels.train, self.labels.valid, self.labels.test]).max())} classes"
        how_split = f", {self.how_split}" if self.how_split else ""
        return f"{self.name}: {numbers} {self.items} of {self._described()}{classes}{how_split}"

    @abstractmethod
    def _described(self) -> str:
        """Return a description of the shape and the kind of an item."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """Kind of the values, a key of `config.suited.LIKELIHOODS_OF`."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of a table; empty for images."""
        return ()

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        """Shape of one item, without the batch dimension."""
        return tuple(self.train.shape[1:])

    @abstractmethod
    def observed(self, binarize: str = "dynamic") -> Observed:
        """Return the data as observed by a program."""

    def take(self: _C, split: str, number: int) -> _C:
        """Return a copy with only the first `number` items of a split.

        Raises:
            DataError: If the split has fewer items.
        """
        values = getattr(self, split)
        if not 0 < number <= len(values):
            raise DataError(
                f"{self.name}: {number} {split} {self.items} requested, but between 1 and {len(values)} are available."
            )
        labels = self.labels and replace(self.labels, **{split: getattr(self.labels, split)[:number]})
        return replace(self, labels=labels, **{split: values[:number]})

    def map(self: _C, fn: Callable[[Tensor], Tensor]) -> _C:
        """Return a copy with `fn` applied to the tensor of every split."""
        return replace(self, train=fn(self.train), valid=fn(self.valid), test=fn(self.test))
