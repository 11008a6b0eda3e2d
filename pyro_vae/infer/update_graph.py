r"""The update of a plain Adam as a part of a recorded graph of loss and gradients.

It is appended as operations that write to arguments of the graph: parameters, moments, numbers of steps, and the index
of the first non-finite step. Where the loss or a gradient is non-finite, or has been at an earlier step, each write
stores the old value. So the host needs no flag to skip a step, and on CUDA nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule, Node, Proxy
from torch.fx.proxy import GraphAppendingTracer

from pyro_vae.infer.gate import Gate, first_failure
from pyro_vae.infer.parameters import State
from pyro_vae.infer.plain_adam import plain_group, step_sizes, updated

_OPTIONS = ("betas", "eps", "weight_decay", "decoupled_weight_decay")
# Largest difference from the optimizer's own update attributed to rounding, relative to the largest change of a tensor.
_TOLERANCE = 1e-4


class Update(NamedTuple):
    """An update of some parameters of an optimizer.

    Attributes:
        group: Their parameter group.
        params: N parameters.
        state: First moments, second moments and numbers of steps: 3 N tensors.
        gate: Gate of the optimizer.
    """

    group: State
    params: list[Tensor]
    state: list[Tensor]
    gate: Gate

    @classmethod
    def of(cls, gate: Gate, names: Sequence[str]) -> Update | None:
        """Return the update of the parameters of these names; None if the optimizer has to take the step by itself.

        That depends on the present state only, not on earlier steps, so that a resumed run takes the same steps.
        """
        group = plain_group(gate.optim)
        if group is None:
            return None
        assert gate.optim.optimizer is not None
        states: Any = gate.optim.optimizer.state
        params = [gate.optim.params.get(name) for name in names]
        known = [p for p in params if p is not None and states.get(p)]
        if not known or len(known) < len(params):  # a new one has no moments yet
            return None
        return cls(group, known, [states[p][key] for key in ("exp_avg", "exp_avg_sq", "step") for p in known], gate)

    @property
    def options(self) -> list[Any]:
        """The numbers that a compiled update contains."""
        return [self.group[name] for name in _OPTIONS]

    @property
    def steps(self) -> list[Tensor]:
        """Numbers of steps that the parameters have taken."""
        return self.state[-len(self.params) :]

    def arguments(self) -> list[Tensor]:
        """Return the arguments of the graph after those of the record."""
        lr, arguments = self.group["lr"], [*self.state, self.gate.failed_step, self.gate.step]
        if isinstance(lr, Tensor):
            return [*arguments, lr]
        lr = torch.tensor(lr, dtype=torch.float64)
        # A loop that is compiled for the CPU would compute the sizes again for every entry of a parameter.
        return [*arguments, lr, *step_sizes(self.steps, lr, self.group, torch.float64)]

    def is_supported(self, others: Sequence[Tensor]) -> bool:
        """Return whether the dtypes are usual ones, all is on one device, and no tensor written shares its memory.

        Args:
            others: The arguments of the record, including the parameters.
        """
        written = [*self.params, *self.state, self.gate.failed_step]
        device = others[0].device
        ids = {id(tensor) for tensor in written}
        memory = [tensor.untyped_storage().data_ptr() for tensor in written]
        return (
            {tensor.device for tensor in written} == {device}
            and isinstance(self.group["lr"], Tensor) == (device.type == "cuda")
            and all(tensor.dtype in (torch.float32, torch.float64) for tensor in (*self.params, *self.state))
            and len(set(memory)) == len(memory)
            and {t.untyped_storage().data_ptr() for t in others if id(t) not in ids}.isdisjoint(memory)
        )

    def append_to(self, record: GraphModule, places: Sequence[int]) -> GraphModule:
        """Return a recorded graph with the update appended; the results are those of the record.

        Args:
            record: Graph that returns loss, ELBO, finiteness and gradients.
            places: Positions of the parameters among its arguments.
        """
        graph = deepcopy(record.graph)
        tracer = GraphAppendingTracer(graph)
        placeholders = graph.find_nodes(op="placeholder")
        (output,) = graph.find_nodes(op="output")
        last = placeholders[-1]

        def add_input(name: str) -> Any:
            nonlocal last
            with graph.inserting_after(last):
                last = graph.placeholder(name)
            return Proxy(last, tracer)

        params: list[Any] = [Proxy(placeholders[place], tracer) for place in places]
        gradients: list[Any] = [Proxy(node, tracer) for node in output.args[0][3:] if isinstance(node, Node)]
        finite: Any = Proxy(output.args[0][2], tracer)
        m, v, steps = ([add_input(f"{name}_{n}") for n in range(len(params))] for name in ("m", "v", "steps"))
        failed, step, lr = (add_input(name) for name in ("failed_step", "step", "lr"))
        sizes = None if isinstance(self.group["lr"], Tensor) else [add_input(name) for name in ("size", "root")]
        with graph.inserting_before(output):
            # CUDA kernels compute the sizes for every entry, so not in float64 unless that is asked for.
            double = any(p.dtype == torch.float64 for p in self.params)
            size, root = sizes or step_sizes(steps, lr, self.group, torch.float64 if double else torch.float32)
            now_failed: Any = first_failure(finite, failed, step)
            writes: list[tuple[Any, Any]] = [(failed, now_failed)]
            for n, (p, gradient) in enumerate(zip(params, gradients, strict=True)):
                new = updated(p, gradient, m[n], v[n], lr, size[n], root[n], self.group)
                pairs = zip((p, m[n], v[n], steps[n]), (*new, steps[n] + 1), strict=True)
                writes += [(old, torch.where(now_failed < 0, value, old)) for old, value in pairs]
            for old, value in writes:
                torch.ops.aten.copy_.default(old, value)
        graph.lint()
        return GraphModule(record, graph)

    def is_taken(self, gradients: Sequence[Tensor], found: Sequence[Tensor]) -> bool:
        """Return whether the optimizer would make the same update.

        Args:
            gradients: Gradients of the parameters.
            found: Updated parameters and state.
        """
        own = [p.detach().clone() for p in self.params]
        options = {key: self.group[key] for key in (*_OPTIONS, "fused", "capturable")}
        optimizer = torch.optim.Adam(own, lr=self.group["lr"], **options)
        count = len(own)
        for n, (p, gradient) in enumerate(zip(own, gradients, strict=True)):
            p.grad = gradient.clone()
            m, v, step = (tensor.clone() for tensor in self.state[n::count])
            optimizer.state[p] = {"step": step, "exp_avg": m, "exp_avg_sq": v}
        optimizer.step()
        right = [*own, *(optimizer.state[p][key] for key in ("exp_avg", "exp_avg_sq", "step") for p in own)]
        return all(map(_is_close, found, right, [*self.params, *self.state]))


def _is_close(found: Tensor, right: Tensor, before: Tensor) -> bool:
    if not right.numel():
        return True
    change, rounding = (right - before).abs().max(), 8 * torch.finfo(right.dtype).eps * right.abs().max()
    return bool((found - right).abs().max() <= _TOLERANCE * change + rounding)
