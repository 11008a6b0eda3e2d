r"""Draw the noise of some rows of a batch as for the whole batch.

Several processes that share the images of a batch start a step from the same state of torch's generators. Each draws
the noise of the whole batch and uses the rows of its own images, so that the draws, and the states of the generators
after the step, are those of a single process. This costs the drawing of noise that is not used, which is little next to
the networks.

Which axis of a random operation belongs to the images is found by running the program on two and on three images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_vae.errors import UserError
from pyro_vae.trace.batch import Batch
from pyro_vae.trace.isolation import fork_depth

_aten = torch.ops.aten
_RANDOM = torch.Tag.nondeterministic_seeded
# Operations that draw more or fewer random numbers, depending on their arguments: the arguments of all rows are needed.
_REJECTION = {
    _aten._standard_gamma.default,
    _aten._sample_dirichlet.default,
    _aten.poisson.default,
    _aten.binomial.default,
    _aten.multinomial.default,
}


class Rows(NamedTuple):
    """Rows `start` to `stop` of a batch of `total` images."""

    start: int
    stop: int
    total: int

    @classmethod
    def split(cls, total: int, part: int, parts: int) -> Rows:
        """Return the rows of one of `parts` parts, whose sizes differ by at most one."""
        return cls(total * part // parts, total * (part + 1) // parts, total)

    def __len__(self) -> int:
        return self.stop - self.start

    def of(self, batch: Batch) -> Batch:
        """Return these rows of a batch; the first image in place of no rows, since programs need an image."""
        return batch[self.start : self.stop] if len(self) else batch[:1]


class Draw(NamedTuple):
    """A random operation of a program: its operation, and the axis of its result that has `ratio` entries per image.

    The axis is None for noise that all images share.
    """

    target: Any
    axis: int | None
    ratio: int = 1

    def whole_shape(self, shape: Sequence[int], rows: Rows) -> list[int]:
        """Return the shape of the noise of all images, given that of some rows."""
        assert self.axis is not None
        return [*shape[: self.axis], self.ratio * rows.total, *shape[self.axis + 1 :]]

    def select(self, whole: Tensor, rows: Rows) -> Tensor:
        """Return the noise of some rows, contiguous; that of the first image in place of no rows."""
        assert self.axis is not None
        length = self.ratio * max(len(rows), 1)
        start = self.ratio * rows.start if len(rows) else 0
        return whole.narrow(self.axis, start, length).contiguous()


def find_draws(
    run: Callable[[Batch], object], batch: Batch, isolated: Callable[[], AbstractContextManager[None]]
) -> list[Draw]:
    """Return the random operations that a function of a batch runs, in their order.

    Args:
        run: Function of a batch.
        batch: Batch whose first image is repeated.
        isolated: Returns a context that undoes the side effects of `run`, so that both runs start from the same state.

    Raises:
        UserError: If the operations depend on the number of images in another way than by the length of one axis.
    """
    found = []
    for size in (3, 2):
        first = torch.zeros(size, dtype=torch.long, device=batch.device)
        with isolated(), _Recorder() as recorder:
            run(batch[first])
        found.append(recorder.draws)
    large, small = found
    if [target for target, _ in large] != [target for target, _ in small]:
        raise UserError(_reason("the operations that draw random numbers depend on the number of images"))
    return [_draw(target, a, b) for (target, a), (_, b) in zip(large, small, strict=True)]


def _draw(target: Any, large: torch.Size, small: torch.Size) -> Draw:
    """Return a draw, given the shapes of its result for three and for two images."""
    if large == small:
        return Draw(target, None)
    axes = [axis for axis, (a, b) in enumerate(zip(large, small, strict=False)) if a != b]
    if len(large) != len(small) or len(axes) > 1 or 2 * large[axes[0]] != 3 * small[axes[0]]:
        raise UserError(_reason(f"noise has shapes {tuple(large)} and {tuple(small)} for three and two images"))
    return Draw(target, axes[0], large[axes[0]] // 3)


def _reason(reason: str) -> str:
    return f"The program cannot be trained in several processes, since {reason}: use one process."


class _Recorder(TorchDispatchMode):
    """Records random operations and the shapes of their results, except while generators are forked."""

    def __init__(self) -> None:
        super().__init__()
        self.draws: list[tuple[Any, torch.Size]] = []
        self._depth = fork_depth()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and record it."""
        result = func(*args, **(kwargs or {}))
        if _RANDOM in func.tags and fork_depth() == self._depth:
            self.draws.append((func, pytree.tree_leaves(result)[0].shape))
        return result


class RowNoise(TorchDispatchMode):
    """Gives random operations the noise of some rows of a batch, drawn for the whole batch.

    Args:
        draws: Result of `find_draws` for the function that runs inside.
        rows: Rows on which it runs.
        gather: Function that returns a list of the tensors of all processes, each with its rows along an axis; called
            for operations that draw by rejection.
    """

    def __init__(self, draws: Sequence[Draw], rows: Rows, gather: Callable[[Tensor], list[Tensor]]) -> None:
        super().__init__()
        self._draws: Iterator[Draw] = iter(draws)
        self._rows, self._gather = rows, gather
        self._depth = fork_depth()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation; a random one for all rows."""
        kwargs = kwargs or {}
        if _RANDOM not in func.tags or fork_depth() != self._depth:
            return func(*args, **kwargs)
        draw = next(self._draws, None)
        if draw is None or draw.target is not func:
            raise UserError(_reason(f"it has drawn random numbers by {func} where it did not before"))
        if draw.axis is None:
            return func(*args, **kwargs)
        written = func._schema.arguments[0].alias_info
        in_place = written is not None and written.is_write
        shape = args[0].shape if in_place else None
        whole_args, whole_kwargs = pytree.tree_map(
            lambda leaf: self._whole(draw, leaf), (args, kwargs), is_leaf=_is_shape
        )
        results = pytree.tree_map(lambda whole: draw.select(whole, self._rows), func(*whole_args, **whole_kwargs))
        return args[0].copy_(results) if shape is not None else results

    def _whole(self, draw: Draw, value: Any) -> Any:
        """Return an argument for all rows, given that for some."""
        axis, length = draw.axis, draw.ratio * max(len(self._rows), 1)
        assert axis is not None
        if _is_shape(value):
            has_rows = len(value) > axis and value[axis] == length
            return draw.whole_shape(value, self._rows) if has_rows else value
        if not isinstance(value, Tensor) or value.dim() <= axis or value.shape[axis] != length:
            return value
        if draw.target in _REJECTION:
            return torch.cat(self._gather(value.narrow(axis, 0, draw.ratio * len(self._rows))), axis)
        whole = value.new_zeros(draw.whole_shape(value.shape, self._rows))
        if len(self._rows):
            whole.narrow(axis, draw.ratio * self._rows.start, length).copy_(value)
        return whole


def _is_shape(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(type(entry) is int for entry in value)
