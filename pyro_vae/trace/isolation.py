r"""Evaluate programs without side effects on modules, the param store and random generators."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.trace.batch import Batch, Data, Program
from pyro_vae.trace.modes import evaluation_mode
from pyro_vae.trace.seeds import derive_seed

_WITHOUT_FLOAT64 = ("mps",)

_forks = 0  # contexts of `fork_rng` that are entered


def fork_depth() -> int:
    """Return the number of contexts of `fork_rng` that are entered: draws inside are undone at their end."""
    return _forks


@contextmanager
def fork_rng(x: Tensor) -> Iterator[None]:
    """Restore the generators of torch (on the CPU and the device of x), Python and NumPy on exit."""
    global _forks
    states = random.getstate(), np.random.get_state()
    _forks += 1
    try:
        with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
            yield
    finally:
        _forks -= 1
        random.setstate(states[0])
        np.random.set_state(states[1])


@contextmanager
def seed_rng(x: Tensor, seed: int | None) -> Iterator[None]:
    """Fork all generators as `fork_rng` does, and seed those of torch. None uses a random seed."""
    with fork_rng(x):
        # Not torch.manual_seed: it also seeds the CUDA devices whose generators are not restored.
        generator = torch.default_generator
        seed = generator.seed() if seed is None else seed
        generator.manual_seed(seed)
        if x.device.type == "cuda":
            torch.cuda.default_generators[x.device.index or 0].manual_seed(seed)
        yield


class _RestoreRequiresGrad(Messenger):
    """Restore `requires_grad` of tensors passed to `pyro.param`, which sets the flag in place."""

    def __enter__(self) -> Any:
        self.flags: dict[int, tuple[Tensor, bool]] = {}
        return super().__enter__()

    def __exit__(self, *error: Any) -> Any:
        for tensor, flag in self.flags.values():
            if tensor.is_leaf:
                tensor.requires_grad_(flag)
        return super().__exit__(*error)

    def _pyro_param(self, msg: Message) -> None:
        value = msg["args"][1] if len(msg["args"]) > 1 else msg["kwargs"].get("init_tensor")
        if isinstance(value, Tensor) and str(msg["name"]) not in pyro.get_param_store():
            self.flags.setdefault(id(value), (value, value.requires_grad))


def stored_ids() -> dict[str, int]:
    """Return {name: id} of the unconstrained tensors in the param store, which are those trained."""
    store: Any = pyro.get_param_store()
    return {name: id(tensor) for name, tensor in store._params.items()}


@contextmanager
def isolated_param_store() -> Iterator[None]:
    """Restore the current state of the param store on exit. Parameters created inside are dropped."""
    store = pyro.get_param_store()
    try:
        with store.scope(store.get_state()):
            yield
    finally:
        # `get_state` deletes the attribute `unconstrained` of every parameter. A lookup restores it, which an SVI
        # driver needs for the parameters that it has captured.
        for name in list(store):
            store[name]


@contextmanager
def read_only(
    *programs: Program, x: Data, seed: int | None = None, purpose: str = "", validate: bool = True
) -> Iterator[None]:
    """Evaluate programs without side effects.

    Module modes, buffers and plain Python attributes, the param store, `requires_grad` flags and the generators of
    torch, Python and NumPy are restored on exit. Inside, the param store starts from its current state. With an empty
    store, a program that uses `pyro.param` would be evaluated as if untrained.

    Args:
        *programs: Models and guides that run inside the context.
        x: Batch on the device where they run.
        seed: Random seed of the draws inside. None uses a random one.
        purpose: Purpose of the draws, which is hashed into the seed: draws for different purposes share no noise, even
            for equal seeds.
        validate: False disables Pyro's validation, which would repeat argument checks at every sample and density.

    Raises:
        ValueError: x is on a device without float64.
    """
    images = Batch.of(x).x
    if images.device.type in _WITHOUT_FLOAT64:
        raise UserError(
            f"x is on the device {str(images.device)!r}, which has no float64, the precision of log weights. Move "
            "the program and its data to 'cpu'."
        )
    with ExitStack() as stack:
        stack.enter_context(seed_rng(images, derive_seed(seed, purpose)))
        stack.enter_context(isolated_param_store())
        stack.enter_context(_RestoreRequiresGrad())
        stack.enter_context(evaluation_mode(*programs))
        if not validate:
            stack.enter_context(pyro.validation_enabled(False))
        yield
