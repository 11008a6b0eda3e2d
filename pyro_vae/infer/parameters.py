r"""The fitted state of a program: its parameters and buffers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_vae.errors import UserError
from pyro_vae.trace import Batch, Data, ModuleRecorder, Program, trace_model_and_guide
from pyro_vae.trace.isolation import fork_rng
from pyro_vae.trace.modes import evaluation_mode, find_modules

State = dict[str, Any]


def root_modules(model: Program, guide: Program) -> list[nn.Module]:
    """Return the outermost modules that a model and its guide refer to, without duplicates; others may run, too."""
    return list(dict.fromkeys([*find_modules(model), *find_modules(guide)]))


def unconstrained_param(name: str) -> Tensor:
    """Return the unconstrained tensor, which is trained, of a name in the param store."""
    value: Any = pyro.get_param_store()[name]
    return value.unconstrained()


def canonical_name(name: str) -> str:
    """Return the canonical name of a parameter that has several, e.g. of tied weights."""
    return str(pyro.get_param_store().param_name(unconstrained_param(name)))


def collect_parameters(modules: Iterable[nn.Module], backward: Callable[[], Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Run the first backward pass and collect the parameters; raise if any of them would silently stay untrained.

    Args:
        modules: Modules that are known to belong to the program.
        backward: Function that runs model and guide, accumulates the gradients of the loss, and returns the loss.

    Returns:
        The loss, and the unconstrained tensors that the program registered in the param store.

    Raises:
        ValueError: If no registered parameter has a gradient, or a parameter with a gradient is not registered; new
            gradients are removed in that case.
    """
    named_params = [
        (f"{type(root).__name__}.{name}", p, p.grad is None) for root in modules for name, p in root.named_parameters()
    ]
    with poutine.trace(param_only=True) as trace:
        loss = backward()
    nodes: dict[str, Any] = trace.trace.nodes
    captured = {id(p): p for p in (site["value"].unconstrained() for site in nodes.values())}
    untrained = [name for name, p, new in named_params if new and p.grad is not None and id(p) not in captured]
    if untrained or all(p.grad is None for p in captured.values()):
        for _, p, new in named_params:
            p.grad = None if new else p.grad
        problem = f"{untrained[0]} has a gradient but would not train" if untrained else "No parameter trains"
        raise UserError(
            f"{problem}: no pyro.module(name, module) registers it, or the param store holds another tensor under "
            "its name. Register every module in the model and the guide, and call pyro.clear_param_store() between "
            "programs."
        )
    return loss, list(captured.values())


def program_state(modules: Iterable[nn.Module], names: Iterable[str]) -> State:
    """Return the fitted values of a program.

    Args:
        modules: Outermost modules of the program.
        names: Names of its parameters in the param store.

    Returns:
        {"params": tensors by name, "modules": state dicts of the modules, including buffers}.
    """
    named = {name: unconstrained_param(name).detach() for name in names}
    return {"params": named, "modules": [root.state_dict() for root in modules]}


def load_program_state(model: Program, guide: Program, state: State, batch: Data) -> list[nn.Module]:
    """Write a `program_state` back into a program and the param store.

    Args:
        model: Callable that defines p(x, z).
        guide: Callable that defines q(z|x).
        state: Result of `program_state` for a program with the same names and shapes.
        batch: Arguments of a step. One run on it registers the parameters with their constraints, and finds the modules
            that belong to the program.

    Returns:
        The outermost modules of the program.

    Raises:
        ValueError: If names or shapes differ; nothing is changed in that case.
    """
    batch = Batch.of(batch)
    # The current parameters may be invalid, e.g. before a rollback, so that validation is off.
    with (
        torch.no_grad(),
        fork_rng(batch.x),
        evaluation_mode(model, guide),
        pyro.validation_enabled(False),
        ModuleRecorder() as ran,
        poutine.trace(param_only=True) as trace,
    ):
        trace_model_and_guide(model, guide, batch, 1)
    modules = ran.outermost(root_modules(model, guide))
    nodes: dict[str, Any] = trace.trace.nodes
    targets = _targets(
        modules, state, {canonical_name(name) for name, node in nodes.items() if node["type"] == "param"}
    )
    with torch.no_grad():
        for target, value in targets:
            target.copy_(value)
    return modules


def _targets(modules: list[nn.Module], state: State, param_names: set[str]) -> list[tuple[Tensor, Tensor]]:
    """Pair each tensor of a program with its value in a state, after validating the state."""
    params, tables = (state.get(part) if isinstance(state, dict) else None for part in ("params", "modules"))
    state_dicts = [root.state_dict() for root in modules]
    if not isinstance(params, dict) or not isinstance(tables, list) or len(tables) != len(state_dicts):
        raise UserError("The state does not belong to this program: its structure differs.")
    pairs: list[tuple[str, Any, Any]] = [("", {name: unconstrained_param(name) for name in param_names}, params)]
    pairs += [(f" of module {index}", *pair) for index, pair in enumerate(zip(state_dicts, tables, strict=True))]
    return [target for where, tensors, values in pairs for target in match_values(tensors, values, where)]


def match_values(tensors: Mapping[str, Tensor], values: Any, where: str = "") -> list[tuple[Tensor, Tensor]]:
    """Pair each tensor with its value in a state, after validating the state.

    Args:
        tensors: Tensors by name.
        values: Tensors that must have the same names and shapes.
        where: Origin of the values for error messages, e.g. " of module 0".

    Raises:
        ValueError: If names or shapes differ.
    """
    if not isinstance(values, dict):
        raise UserError(f"The state does not belong to this program: it has no values{where}.")
    if mismatched := sorted(map(str, tensors.keys() ^ values.keys())):
        raise UserError(f"The state does not belong to this program: {mismatched[0]!r}{where} is in only one of them.")
    for name, tensor in tensors.items():
        shape = tuple(values[name].shape) if isinstance(values[name], Tensor) else type(values[name]).__name__
        if shape != tuple(tensor.shape):
            raise UserError(f"{name}{where} has shape {shape} in the state, not {tuple(tensor.shape)}.")
    return [(tensor, values[name]) for name, tensor in tensors.items()]
