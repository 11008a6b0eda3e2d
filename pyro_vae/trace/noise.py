r"""Share the noise that a program draws outside its sample sites (e.g. dropout) between several runs.

An objective that scores a guide a second time, at the z that it sampled, needs the same guide: with a fresh dropout
mask it would be a different distribution, and terms that must cancel would not. The first run therefore records the
results of its random tensor operations in order, except those that sample sites draw, and later runs receive these
results. Because this works on tensor operations, it also works in recorded steps.
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
    """Record the noise of a first run (`keep`) and replay it in further runs (`give`)."""

    def __init__(self) -> None:
        self._kept: list[tuple[Any, Any]] = []

    def __bool__(self) -> bool:
        return bool(self._kept)

    @contextmanager
    def keep(self) -> Iterator[None]:
        """Record the results of random operations other than the draws of sample sites. Clear earlier ones."""
        self._kept.clear()
        with _RecordNoise(self._kept) as mode, _MarkSampling(mode):
            yield

    @contextmanager
    def give(self) -> Iterator[None]:
        """Replay the recorded results in order. If nothing was recorded, do nothing."""
        if not self._kept:
            yield
            return
        with _ReplayNoise(self._kept):
            yield


class _RecordNoise(TorchDispatchMode):
    """Append the result of every random operation to `kept`, except while a site is being sampled."""

    def __init__(self, kept: list[tuple[Any, Any]]) -> None:
        super().__init__()
        self.kept, self.drawing = kept, False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if _RANDOM in func.tags and not self.drawing:
            # Clone: dropout subsequently scales its mask in place.
            self.kept.append((func, pytree.tree_map_only(Tensor, torch.clone, result)))
        return result


class _MarkSampling(Messenger):
    """Set `drawing` while a sample site draws its value."""

    def __init__(self, mode: _RecordNoise) -> None:
        super().__init__()
        self.mode = mode

    def _pyro_sample(self, msg: Message) -> None:
        self.mode.drawing = not msg["done"] and not msg["is_observed"]

    def _pyro_post_sample(self, msg: Message) -> None:
        self.mode.drawing = False


class _ReplayNoise(TorchDispatchMode):
    """Return recorded results from random operations; the operations must occur in the recorded order."""

    def __init__(self, kept: list[tuple[Any, Any]]) -> None:
        super().__init__()
        self.left = list(kept)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if _RANDOM not in func.tags:
            return func(*args, **(kwargs or {}))
        if not self.left or self.left[0][0] is not func:
            raise UserError("A program draws different noise when it is run again: it cannot be scored a second time.")
        result = self.left.pop(0)[1]
        if func._schema.is_mutable:
            return args[0].copy_(result)
        return pytree.tree_map_only(Tensor, torch.clone, result)
