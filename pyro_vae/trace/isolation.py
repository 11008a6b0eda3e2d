r"""Reading a program without leaving a mark on it."""

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

from pyro_vae.trace.batch import Batch, Data, Program
from pyro_vae.trace.modes import evaluation_mode
from pyro_vae.trace.seeds import derive_seed


@contextmanager
def fork_rng(x: Tensor) -> Iterator[None]:
    """Restore the random streams of the CPU, of the device of x, of Python and of NumPy on leaving."""
    streams = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
            yield
    finally:
        random.setstate(streams[0])
        np.random.set_state(streams[1])


@contextmanager
def seed_rng(x: Tensor, seed: int | None) -> Iterator[None]:
    """Fork the random streams and seed those of torch on the CPU and on the device of x; None takes fresh entropy."""
    with fork_rng(x):
        # Not torch.manual_seed, which would also seed the CUDA devices whose streams are not restored.
        generator = torch.default_generator
        seed = generator.seed() if seed is None else seed
        generator.manual_seed(seed)
        if x.device.type == "cuda":
            torch.cuda.default_generators[x.device.index or 0].manual_seed(seed)
        yield


class _KeptFlags(Messenger):
    """Gives tensors that programs hand to `pyro.param`, which makes them require gradients, their own flags back."""

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
    """Return the identity of the tensor that is trained under each name of the param store."""
    store: Any = pyro.get_param_store()
    return {name: id(tensor) for name, tensor in store._params.items()}


@contextmanager
def isolated_param_store() -> Iterator[None]:
    """Give the param store back as it is now: parameters that appear inside are not in it."""
    store = pyro.get_param_store()
    try:
        with store.scope(store.get_state()):
            yield
    finally:
        # `get_state` takes from every tensor the reference to its unconstrained one; looking it up puts it back, for
        # a driver that holds what it has captured.
        for name in list(store):
            store[name]


@contextmanager
def read_only(
    *programs: Program, x: Data, seed: int | None = None, purpose: str = "", validate: bool = True
) -> Iterator[None]:
    """Read programs: no parameter, module mode, param store entry or random stream of torch changes.

    The param store is scoped to a copy of its present state: an empty scope would score a program that
    uses `pyro.param` as if it were untrained.

    Args:
        programs: models and guides that are read inside the context.
        x: a batch on the device where they run.
        seed: seed of the draws inside; ``None`` takes fresh entropy.
        purpose: what the draws are for. Draws of two purposes share no noise, whatever the seeds.
        validate: ``False`` switches off Pyro's validation, which would check every draw and every density again.
    """
    with ExitStack() as stack:
        stack.enter_context(seed_rng(Batch.of(x).x, derive_seed(seed, purpose)))
        stack.enter_context(isolated_param_store())
        stack.enter_context(_KeptFlags())
        stack.enter_context(evaluation_mode(*programs))
        if not validate:
            stack.enter_context(pyro.validation_enabled(False))
        yield
