r"""The fitted values of a program: what a checkpoint holds of it."""

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
    """Return the modules that a model and its guide refer to, each once; others may run as well."""
    return list(dict.fromkeys([*find_modules(model), *find_modules(guide)]))


def unconstrained_param(name: str) -> Tensor:
    """Return the tensor that is trained under a name of the param store."""
    value: Any = pyro.get_param_store()[name]
    return value.unconstrained()


def canonical_name(name: str) -> str:
    """Return the one name of a parameter that goes by several, as tied weights do."""
    return str(pyro.get_param_store().param_name(unconstrained_param(name)))


def collect_parameters(modules: Iterable[nn.Module], backward: Callable[[], Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Take the gradients of a program's first step, and refuse one of which some part would silently not train.

    Args:
        modules: that are known to belong to it.
        backward: runs model and guide, and leaves the gradients of the loss, which it returns.

    Returns:
        The loss, and the tensors that have been captured.

    Raises:
        ValueError: no parameter is captured, or one that has a gradient is not; the gradients are taken back then.
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
            f"{problem}: no pyro.module(name, module) names it, or the param store holds another tensor of its "
            "name. Name every module in the model and the guide, and call pyro.clear_param_store() between "
            "programs."
        )
    return loss, list(captured.values())


def program_state(modules: Iterable[nn.Module], names: Iterable[str]) -> State:
    """Return the values of a fitted program.

    Args:
        modules: those that belong to it, outermost ones.
        names: of its parameters in the param store.

    Returns:
        {"params": by name, "modules": state dicts of the modules, buffers included}.
    """
    named = {name: unconstrained_param(name).detach() for name in names}
    return {"params": named, "modules": [root.state_dict() for root in modules]}


def load_program_state(model: Program, guide: Program, state: State, batch: Data) -> list[nn.Module]:
    """Write `program_state` back into a program and the param store.

    Args:
        model: program of p(x, z).
        guide: program of q(z|x).
        state: what `program_state` returned, of a program of the same names and shapes.
        batch: what a step takes; one run enters the parameters and their constraints in the store, and shows which
            modules belong to the program.

    Returns:
        These modules, outermost ones.

    Raises:
        ValueError: names or shapes differ; nothing has been changed then.
    """
    batch = Batch.of(batch)
    # What the parameters are now may be what a fit goes back from, and of no distribution.
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
    """Return each tensor of a program with its value in a state, of which nothing is taken on trust."""
    params, tables = (state.get(part) if isinstance(state, dict) else None for part in ("params", "modules"))
    state_dicts = [root.state_dict() for root in modules]
    if not isinstance(params, dict) or not isinstance(tables, list) or len(tables) != len(state_dicts):
        raise UserError("The state is not that of a program, or of another one.")
    pairs: list[tuple[str, Any, Any]] = [("", {name: unconstrained_param(name) for name in param_names}, params)]
    pairs += [(f" of module {index}", *pair) for index, pair in enumerate(zip(state_dicts, tables, strict=True))]
    return [target for where, tensors, values in pairs for target in match_values(tensors, values, where)]


def match_values(tensors: Mapping[str, Tensor], values: Any, where: str = "") -> list[tuple[Tensor, Tensor]]:
    """Return each tensor with its value in a state, of which nothing is taken on trust.

    Args:
        tensors: by name.
        values: tensors of the same names and shapes.
        where: these are, for an error: " of ...".

    Raises:
        ValueError: names or shapes differ.
    """
    if not isinstance(values, dict):
        raise UserError(f"The state is not that of a program: it has no values{where}.")
    if mismatched := sorted(map(str, tensors.keys() ^ values.keys())):
        raise UserError(f"The state is of another program: {mismatched[0]!r}{where} is in one of them alone.")
    for name, tensor in tensors.items():
        shape = tuple(values[name].shape) if isinstance(values[name], Tensor) else type(values[name]).__name__
        if shape != tuple(tensor.shape):
            raise UserError(f"{name}{where} has shape {shape}, not {tuple(tensor.shape)}, in the state.")
    return [(tensor, values[name]) for name, tensor in tensors.items()]
