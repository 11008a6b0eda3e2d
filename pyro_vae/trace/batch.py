r"""What a program is called with: any arguments, of which some have one row for each image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_vae.errors import UserError

Program: TypeAlias = Callable[..., Any]


class Batch:
    """The arguments of one call of a program, ``program(*args, **kwargs)``.

    The first tensor among them is `x`, and B, its first size, is the number of images. Every tensor whose first size is
    B, also inside lists, tuples and dictionaries, holds one row for each image: these are split, chosen and repeated
    together. Everything else is passed on as it is.

    Args:
        *args: positional arguments of the program.
        **kwargs: keyword arguments of the program.

    Raises:
        ValueError: no argument is a tensor with a first dimension.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs
        first = args[0] if args else None
        if not isinstance(first, Tensor) or first.dim() == 0:
            tensors = (leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim())
            first = next(tensors, None)
        if first is None:
            raise UserError("No argument of the program is a tensor (B, ...): pass the batch of data as an argument.")
        self.x: Tensor = first

    @staticmethod
    def of(batch: Data) -> Batch:
        """Return a batch of what a caller gives: a batch, a tensor x, or a tuple or list of positional arguments."""
        if isinstance(batch, Batch):
            return batch
        return Batch(*batch) if isinstance(batch, (tuple, list)) else Batch(batch)

    @staticmethod
    def from_call(*args: Any, **kwargs: Any) -> Batch:
        """Return the batch of a call: its arguments, or the one `Batch` that it was given."""
        return args[0] if len(args) == 1 and isinstance(args[0], Batch) else Batch(*args, **kwargs)

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        return f"Batch of {len(self)}, x {tuple(self.x.shape)}"

    @property
    def device(self) -> torch.device:
        """The device of x."""
        return self.x.device

    def call(self, program: Program) -> Any:
        """Call a program with these arguments."""
        return program(*self.args, **self.kwargs)

    def map_rows(self, fn: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch with a change made to every tensor that has a row for each image."""
        if not self.kwargs and len(self.args) == 1 and self.args[0] is self.x:
            return Batch(fn(self.x))
        size = len(self)

        def changed(leaf: Any) -> Any:
            return fn(leaf) if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == size else leaf

        args, kwargs = pytree.tree_map(changed, (self.args, self.kwargs))
        return Batch(*args, **kwargs)

    def replace_x(self, x: Tensor) -> Batch:
        """Return the batch with other images in the place of x."""
        args, kwargs = pytree.tree_map(lambda leaf: x if leaf is self.x else leaf, (self.args, self.kwargs))
        return Batch(*args, **kwargs)

    def __getitem__(self, rows: Any) -> Batch:
        """Return some of the images, by a slice or a tensor of indices."""
        return self.map_rows(lambda leaf: leaf[rows])

    def repeat(self, num: int) -> Batch:
        """Return the images repeated as a whole, (number * B, ...)."""
        return self.map_rows(lambda leaf: leaf.repeat(num, *[1] * (leaf.dim() - 1)))

    def expand(self, num: int) -> Batch:
        """Return the first image as a batch of so many, a view."""
        return self.map_rows(lambda leaf: leaf[:1].expand(num, *leaf.shape[1:]))

    def split(self, size: int) -> Iterator[Batch]:
        """Yield the images in batches of a size, of which the last may be smaller."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def non_tensors(self) -> list[Any]:
        """Return the arguments that are no tensors, such as an object of settings."""
        return [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if not isinstance(leaf, Tensor)]

    def flatten(self) -> tuple[list[Tensor], Callable[[list[Tensor]], Batch], Any]:
        """Return the tensors, a function that builds the batch of others in their places, and all else, hashable.

        Raises:
            TypeError: an argument is neither a tensor nor hashable.
        """
        if len(self.args) == 1 and self.args[0] is self.x and not self.kwargs:  # the usual one, at every step
            return [self.x], _alone, None
        leaves, structure = pytree.tree_flatten((self.args, self.kwargs))
        indices = [index for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        others = tuple((index, leaf) for index, leaf in enumerate(leaves) if not isinstance(leaf, Tensor))
        hash(others)

        def build(tensors: list[Tensor]) -> Batch:
            filled = list(leaves)
            for index, tensor in zip(indices, tensors, strict=True):
                filled[index] = tensor
            args, kwargs = pytree.tree_unflatten(filled, structure)
            return Batch(*args, **kwargs)

        return [leaves[index] for index in indices], build, (structure, others)


def _alone(tensors: list[Tensor]) -> Batch:
    return Batch(*tensors)


Data: TypeAlias = "Tensor | Batch | tuple[Any, ...] | list[Any]"
