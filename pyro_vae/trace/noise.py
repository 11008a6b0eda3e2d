r"""The noise of a program beside its sites (dropout, for one), the same when the program is run again.

An objective that scores a guide a second time at the z that it has drawn means the same guide: under a fresh dropout
mask it would be another one, and the score that ought to cancel would not. So the random operations of the first run
are kept in their order, those of the sites' own draws left out, and the second run is given their results. That works
on operations of tensors, and so in a recorded step as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_vae.errors import UserError

_RANDOM = torch.Tag.nondeterministic_seeded


class SharedNoise:
    """Keeps the noise of a first run, `keep`, for further runs, `give`."""

    def __init__(self) -> None:
        self._kept: list[tuple[Any, Any]] = []

    def __bool__(self) -> bool:
        return bool(self._kept)

    @contextmanager
    def keep(self) -> Iterator[None]:
        """Keep the results of random operations that are not the draws of sample sites, and no earlier ones."""
        self._kept.clear()
        with _Keep(self._kept) as mode, _Draws(mode):
            yield

    @contextmanager
    def give(self) -> Iterator[None]:
        """Give them again, in their order; without any there is nothing to do."""
        if not self._kept:
            yield
            return
        with _Give(self._kept):
            yield


class _Keep(TorchDispatchMode):
    def __init__(self, kept: list[tuple[Any, Any]]) -> None:
        super().__init__()
        self.kept, self.drawing = kept, False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if _RANDOM in func.tags and not self.drawing:
            # A copy: dropout goes on to scale its mask in place.
            self.kept.append((func, pytree.tree_map_only(Tensor, torch.clone, result)))
        return result


class _Draws(Messenger):
    """Says when a sample site draws."""

    def __init__(self, mode: _Keep) -> None:
        super().__init__()
        self.mode = mode

    def _pyro_sample(self, msg: Message) -> None:
        self.mode.drawing = not msg["done"] and not msg["is_observed"]

    def _pyro_post_sample(self, msg: Message) -> None:
        self.mode.drawing = False


class _Give(TorchDispatchMode):
    def __init__(self, kept: list[tuple[Any, Any]]) -> None:
        super().__init__()
        self.left = list(kept)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if _RANDOM not in func.tags:
            return func(*args, **(kwargs or {}))
        if not self.left or self.left[0][0] is not func:
            raise UserError("A program draws other noise when it is run again: it cannot be scored a second time.")
        result = self.left.pop(0)[1]
        if func._schema.is_mutable:
            return args[0].copy_(result)
        return pytree.tree_map_only(Tensor, torch.clone, result)
