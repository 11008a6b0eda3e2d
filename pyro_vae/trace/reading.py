r"""Reading a program without leaving a mark on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor, nn

Program = Callable[..., Any]


def owner(program: Program) -> Any:
    """Return the object a bound method belongs to, or the callable itself."""
    return getattr(program, "__self__", program)


def modules(program: Program) -> list[nn.Module]:
    """Return the modules behind a program: its owner, or those its owner holds as attributes."""
    held = owner(program)
    if isinstance(held, nn.Module):
        return [held]
    return [value for value in getattr(held, "__dict__", {}).values() if isinstance(value, nn.Module)]


@contextmanager
def evaluation_mode(*programs: Program) -> Iterator[None]:
    """Switch every module behind the programs to ``eval()``, each submodule back to its own mode after."""
    modes = {part: part.training for program in programs for root in modules(program) for part in root.modules()}
    try:
        for part in modes:
            part.training = False
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def fork_rng(x: Tensor) -> AbstractContextManager[None]:
    """Restore the random streams of the CPU and of the device of x on leaving."""
    return torch.random.fork_rng([x.device] if x.device.type == "cuda" else [])


@contextmanager
def reading(*programs: Program, x: Tensor, seed: int | None = None) -> Iterator[None]:
    """Read programs: no parameter, random stream, module mode or param store entry changes.

    The param store is scoped to a copy of its present state: an empty scope would score a program that
    uses `pyro.param` as if it were untrained.

    Args:
        programs: models and guides that are read inside the context.
        x: a tensor on the device where they run.
        seed: seed of the draws inside; ``None`` takes fresh entropy.
    """
    store = pyro.get_param_store()
    with ExitStack() as stack:
        stack.enter_context(fork_rng(x))
        if seed is None:
            torch.seed()
        else:
            torch.manual_seed(seed)
        stack.enter_context(store.scope(store.get_state()))
        stack.enter_context(evaluation_mode(*programs))
        yield
