r"""Loss and gradients of a step as one graph, from the places of its images to the gate."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from pyro_vae.infer.objectives import Objective
from pyro_vae.infer.parameters import unconstrained
from pyro_vae.trace import Graph, GraphError, Program
from pyro_vae.trace.graph import plain_values

_LOG = logging.getLogger("pyro_vae")

Observe = Callable[..., Tensor]


class Outcome(NamedTuple):
    """What a step computes before the weights move: loss and ELBO summed over the batch, in nats, the gradients by name
    in the param store, and whether all of it is finite.
    """

    loss: Tensor
    elbo: Tensor
    finite: Tensor
    gradients: dict[str, Tensor]


class RecordedStep:
    """The graph of a step, for batches of one size; others, such as the last of an epoch, are left to the caller.

    Args:
        model: program of p(x, z).
        guide: program of q(z|x).
        objective: what is maximised.
        compiled: whether the record is compiled.
    """

    def __init__(self, model: Program, guide: Program, objective: Objective, *, compiled: bool) -> None:
        self.model, self.guide, self.objective, self.compiled = model, guide, objective, compiled
        # In the state of a run: one resumed before its last batch would else record that one's size.
        self.sizes: list[list[int]] | None = None
        self._observe: Observe | None = None
        self._graph: Graph | None = None
        self._values: dict[str, Any] | None = None  # of the objective, in Python
        self._refused = False

    def takes(self, observe: Observe | None, args: tuple[Any, ...]) -> bool:
        """Whether a step on x = observe(*args), or on args as they are, is in the graph.

        The first step never is: it names the parameters and checks the program.
        """
        sizes = [list(arg.shape) for arg in args if isinstance(arg, Tensor)]
        values = plain_values(self.objective)
        self._values = values if self._values is None else self._values
        if self.sizes is None:
            self.sizes = sizes
            return False
        if self._graph is None or observe != self._observe:
            self._observe = observe
            self._graph = Graph(self._loss_and_gradients, self.model, self.guide, compiled=self.compiled)
        if not self._refused and values != self._values:
            name = next(name for name in values if values[name] != self._values.get(name))
            self._refuse(f"{type(self.objective).__name__}.{name} changes from step to step; make it a tensor")
        return not self._refused and len(sizes) == len(args) and sizes == self.sizes

    def __call__(self, *args: Tensor) -> Outcome | None:
        """Compute a step that `takes` has agreed to; None where it cannot be recorded after all."""
        assert self._graph is not None
        try:
            names, (loss, elbo, finite, *gradients) = self._graph(*args)
        except GraphError as error:
            self._refuse(str(error))
            return None
        assert loss is not None and elbo is not None and finite is not None  # noqa: PT018 -- for the type checker
        return Outcome(loss, elbo, finite, {n: g for n, g in zip(names, gradients, strict=True) if g is not None})

    def _refuse(self, reason: str) -> None:
        self._refused = True
        _LOG.warning("The step is not recorded: %s. Pyro runs every step.", reason)

    def key(self, *args: Tensor) -> Any:
        """Return what a captured graph stands on: what Python decides by, and numbers that lie on the host."""
        assert self._graph is not None
        return self._graph.key(args), self._graph.host_versions(args)

    def _loss_and_gradients(self, *args: Tensor) -> tuple[list[str], tuple[Tensor | None, ...]]:
        inputs = args if self._observe is None else (self._observe(*args),)
        objective, elbo = self.objective.bounds(self.model, self.guide, *inputs)
        loss = -objective.sum()
        trained = {name: p for name in pyro.get_param_store() if (p := unconstrained(name)).requires_grad}
        gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        total = sum((gradient.sum() for gradient in gradients if gradient is not None), loss)
        return list(trained), (loss.detach(), elbo.sum(), total.isfinite(), *gradients)
