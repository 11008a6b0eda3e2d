r"""The splits of a data set: one tensor each, of the same columns or pixels, with their labels."""

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
    """Training, validation and test data, (N, *shape) each, and their labels, if there are some.

    Raises:
        DataError: the splits differ in shape, one is empty, or the labels are not one row for each item.
    """

    items: ClassVar[str] = "items"
    """What one row of the data is called."""

    name: str
    train: Tensor
    valid: Tensor
    test: Tensor
    labels: Labels | None = None
    how_split: str = ""
    """How a user's own data have come to their splits, in words."""

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
            if self.labels and (found := getattr(self.labels, split).shape) != (len(values), len(self.labels.names)):
                raise DataError(f"{self.name}: labels {tuple(found)} of {len(values)} {split} {self.items}.")

    def __str__(self) -> str:
        """Return one line: how many items of which shape and kind, their classes, and how they have been split."""
        numbers = ", ".join(f"{len(getattr(self, split)):,} {split}" for split in ("train", "valid", "test"))
        classes = ""
        if self.labels is not None and self.labels.names == ("class",):
            classes = f", {1 + int(torch.cat([self.labels.train, self.labels.test]).max())} classes"
        how_split = f", {self.how_split}" if self.how_split else ""
        return f"{self.name}: {numbers} {self.items} of {self._described()}{classes}{how_split}"

    @abstractmethod
    def _described(self) -> str:
        """Return the shape and the kind of an item, in words."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """What the values are, a key of `config.suited.LIKELIHOODS_OF`."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, where the data are rows that have some."""
        return ()

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        """Shape of one item."""
        return tuple(self.train.shape[1:])

    @abstractmethod
    def observed(self, binarize: str = "dynamic") -> Observed:
        """Return the data as a program observes them."""

    def take(self: _C, split: str, number: int) -> _C:
        """Return the data with only the first so many items of a split.

        Raises:
            DataError: there are not so many.
        """
        values = getattr(self, split)
        if not 0 < number <= len(values):
            raise DataError(
                f"{self.name}: {number} {split} {self.items} asked for, between 1 and {len(values)} are there."
            )
        labels = self.labels and replace(self.labels, **{split: getattr(self.labels, split)[:number]})
        return replace(self, labels=labels, **{split: values[:number]})

    def map(self: _C, fn: Callable[[Tensor], Tensor]) -> _C:
        """Return the data with every split changed."""
        return replace(self, train=fn(self.train), valid=fn(self.valid), test=fn(self.test))
