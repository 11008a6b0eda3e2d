r"""Arguments of a model or guide, some of which hold one row per image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_vae.errors import UserError

Program: TypeAlias = Callable[..., Any]


class Batch:
    """Arguments of one call of a model or guide, ``program(*args, **kwargs)``.

    The first tensor among the arguments is `x`; its first dimension is the batch size B. Every tensor whose first
    dimension has size B, including those inside lists, tuples and dictionaries, holds one row per image. Such tensors
    are split, indexed and repeated together. NumPy arrays become tensors, those of floating-point numbers in torch's
    default dtype. All other arguments are passed on unchanged.

    Args:
        *args: Positional arguments of the model or guide.
        **kwargs: Keyword arguments of the model or guide.

    Raises:
        ValueError: No argument is a tensor with at least one dimension.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if any(isinstance(value, np.ndarray) for value in (*args, *kwargs.values())):
            args, kwargs = pytree.tree_map(_to_tensor, (args, kwargs))
        self.args, self.kwargs = args, kwargs
        first = args[0] if args else None
        if not isinstance(first, Tensor) or first.dim() == 0:
            tensors = (leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim())
            first = next(tensors, None)
        if first is None:
            raise UserError(
                "No argument of the program is a tensor of shape (B, ...): pass the batch of data as an argument."
            )
        self.x: Tensor = first

    @staticmethod
    def of(batch: Data) -> Batch:
        """Convert x, or a tuple or list of positional arguments, to a `Batch`; return a `Batch` unchanged."""
        if isinstance(batch, Batch):
            return batch
        return Batch(*batch) if isinstance(batch, (tuple, list)) else Batch(batch)

    @staticmethod
    def from_call(*args: Any, **kwargs: Any) -> Batch:
        """Return the arguments of a call as a `Batch`; a `Batch` passed as the only argument is returned unchanged."""
        return args[0] if len(args) == 1 and isinstance(args[0], Batch) else Batch(*args, **kwargs)

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        return f"Batch of {len(self)}, x {tuple(self.x.shape)}"

    @property
    def device(self) -> torch.device:
        """Device of `x`."""
        return self.x.device

    def call(self, program: Program) -> Any:
        """Call a model or guide with these arguments."""
        return program(*self.args, **self.kwargs)

    def map_rows(self, fn: Callable[[Tensor], Tensor]) -> Batch:
        """Return a copy of the batch with `fn` applied to every tensor that holds one row per image."""
        if not self.kwargs and len(self.args) == 1 and self.args[0] is self.x:
            return Batch(fn(self.x))
        size = len(self)

        def map_leaf(leaf: Any) -> Any:
            return fn(leaf) if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == size else leaf

        args, kwargs = pytree.tree_map(map_leaf, (self.args, self.kwargs))
        return Batch(*args, **kwargs)

    def replace_x(self, x: Tensor) -> Batch:
        """Return a copy of the batch with `x` replaced."""
        args, kwargs = pytree.tree_map(lambda leaf: x if leaf is self.x else leaf, (self.args, self.kwargs))
        return Batch(*args, **kwargs)

    def __getitem__(self, rows: Any) -> Batch:
        """Return a batch of the selected images. `rows` is a slice or a tensor of indices."""
        return self.map_rows(lambda leaf: leaf[rows])

    def repeat(self, num: int) -> Batch:
        """Return the batch repeated `num` times, (num * B, ...), with the images of each copy adjacent."""
        return self.map_rows(lambda leaf: leaf.repeat(num, *[1] * (leaf.dim() - 1)))

    def expand(self, num: int) -> Batch:
        """Return a batch of `num` copies of the first image, as views."""
        return self.map_rows(lambda leaf: leaf[:1].expand(num, *leaf.shape[1:]))

    def split(self, size: int) -> Iterator[Batch]:
        """Yield batches of at most `size` images."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def non_tensors(self) -> list[Any]:
        """Return the arguments that are not tensors, e.g. an object with settings."""
        return [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if not isinstance(leaf, Tensor)]

    def flatten(self) -> tuple[list[Tensor], Callable[[list[Tensor]], Batch], Any]:
        """Split the arguments into tensors and everything else.

        Returns:
            (tensors, build, static): the tensor arguments; a function that builds a batch from as many other tensors;
            and the structure of the arguments with the non-tensor ones, hashable.

        Raises:
            TypeError: An argument is neither a tensor nor hashable.
        """
        if len(self.args) == 1 and self.args[0] is self.x and not self.kwargs:  # fast path of every step
            return [self.x], _build_single, None
        leaves, structure = pytree.tree_flatten((self.args, self.kwargs))
        indices = [index for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        others = tuple((index, leaf) for index, leaf in enumerate(leaves) if not isinstance(leaf, Tensor))
        hash(others)

        def build(tensors: list[Tensor]) -> Batch:
            new_leaves = list(leaves)
            for index, tensor in zip(indices, tensors, strict=True):
                new_leaves[index] = tensor
            args, kwargs = pytree.tree_unflatten(new_leaves, structure)
            return Batch(*args, **kwargs)

        return [leaves[index] for index in indices], build, (structure, others)


def _to_tensor(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    # Torch supports neither foreign byte orders nor negative strides, and warns about read-only memory.
    tensor = torch.as_tensor(np.require(value, value.dtype.newbyteorder("="), ["C", "W"]))
    return tensor.to(torch.get_default_dtype()) if tensor.is_floating_point() else tensor


def _build_single(tensors: list[Tensor]) -> Batch:
    return Batch(*tensors)


Data: TypeAlias = "Tensor | np.ndarray | Batch | tuple[Any, ...] | list[Any]"
