r"""The fitted values of a program: what a checkpoint holds of it."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.trace import Program
from pyro_vae.trace.reading import fork_rng, modules

State = dict[str, Any]


def roots(model: Program, guide: Program) -> list[torch.nn.Module]:
    """Return the modules behind a model and its guide, each once."""
    return list(dict.fromkeys([*modules(model), *modules(guide)]))


def unconstrained(name: str) -> Tensor:
    """Return the tensor that is trained under a name of the param store."""
    value: Any = pyro.get_param_store()[name]
    return value.unconstrained()


def parameters(model: Program, guide: Program) -> State:
    """Return the values of a fitted program: {"params": by param store name, "modules": their state dicts}."""
    store = pyro.get_param_store()
    named = {name: unconstrained(name).detach() for name in sorted(store.keys())}
    return {"params": named, "modules": [root.state_dict() for root in roots(model, guide)]}


def load_parameters(model: Program, guide: Program, state: State, *args: Any, **kwargs: Any) -> None:
    """Write `parameters` back into a program and the param store.

    Args:
        model: program of p(x, z).
        guide: program of q(z|x).
        state: what `parameters` returned, of a program of the same names and shapes.
        args: arguments of a step; one run enters the parameters and their constraints in the store.
        kwargs: likewise.

    Raises:
        ValueError: names or shapes differ.
    """
    store = pyro.get_param_store()
    x = args[0]
    with torch.no_grad(), fork_rng(x):
        trace = poutine.trace(guide).get_trace(*args, **kwargs)
        poutine.trace(poutine.replay(model, trace=trace)).get_trace(*args, **kwargs)
        if state["params"].keys() - store.keys():
            raise ValueError(f"No parameter {sorted(state['params'].keys() - store.keys())[0]!r} in this program.")
        for name, value in state["params"].items():
            target = unconstrained(name)
            if target.shape != value.shape:
                raise ValueError(f"{name} has shape {tuple(value.shape)}, not {tuple(target.shape)}, in the state.")
            target.copy_(value)
        for root, values in zip(roots(model, guide), state["modules"], strict=True):
            root.load_state_dict(values)
