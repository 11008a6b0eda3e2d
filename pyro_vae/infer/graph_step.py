r"""Loss and gradients of a step as one graph, from the places of its images to the gate."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from pyro_vae.infer.objectives.objective import Objective
from pyro_vae.infer.parameters import canonical_name, unconstrained_param
from pyro_vae.trace import Batch, Graph, GraphError, Program, Record, stored_ids

_LOG = logging.getLogger("pyro_vae")

Preprocess = Callable[..., Any]

# Calls after which a record is compared with the program once in an epoch (of shorter epochs not in every one), and
# calls after which it is compared in any case.
_LEAST_CALLS, _MOST_CALLS = 100, 1000
# Relative differences that rounding may make: of products in bfloat16, and otherwise as a graph has them.
_TOLERANCES = {"bf16": 0.02}


class StepResult(NamedTuple):
    """What a step computes before the weights move: loss and ELBO summed over the batch, in nats, whether all of it is
    finite, the gradients by name in the param store, and the `stored_ids` of the store that they belong to.
    """

    loss: Tensor
    elbo: Tensor
    finite: Tensor
    gradients: dict[str, Tensor]
    stored: dict[str, int]

    @classmethod
    def of(cls, static: Any, results: Sequence[Tensor | None]) -> StepResult:
        """Return what the record of a step has found, given what Python knows of it and its tensors."""
        (names, stored), (loss, elbo, finite, *gradients) = static, results
        assert loss is not None and elbo is not None and finite is not None  # noqa: PT018 -- for the type checker
        by_name = {name: g for name, g in zip(names, gradients, strict=True) if g is not None}
        return cls(loss, elbo, finite, by_name, stored)


class RecordedStep:
    """The graph of a step, for batches of one form; others, such as the last of an epoch, are left to the caller.

    At its calls 2, 4, 8, ..., after a thousand others, and after `compare_soon`, the graph is compared with the program
    on the batch at hand and the same noise, and given up where the two differ.

    Args:
        model: program of p(x, z).
        guide: program of q(z|x).
        objective: what is maximized.
        compiled: whether the record is compiled.
        precision: of the matrix products, one of `PRECISIONS`.
    """

    def __init__(
        self, model: Program, guide: Program, objective: Objective, *, compiled: bool, precision: str = "float32"
    ) -> None:
        self.model, self.guide, self.objective, self.compiled = model, guide, objective, compiled
        self.options: dict[str, Any] = {"compiled": compiled}
        if precision in _TOLERANCES:
            self.options["tolerance"] = _TOLERANCES[precision]
        # In the state of a run: one resumed before its last batch would else record that one's size.
        self.sizes: list[list[int]] | None = None
        self._form: Any = None  # of the arguments, beside sizes
        self._preprocess: Preprocess | None = None
        self._build: Any = None
        self._graph: Graph | None = None
        self._refused = self._said = False
        self._calls = 0
        self._compared_at = 0
        self._soon = False
        self.pending: StepResult | None = None  # of the next call, where it has been computed with those of other fits

    def accepts(self, preprocess: Preprocess | None, batch: Batch) -> bool:
        """Whether a step on a batch, or on what `preprocess` makes of it, is in the graph.

        The first step never is: it names the parameters and checks the program.
        """
        if self._refused:
            return False
        try:
            tensors, build, form = batch.flatten()
        except TypeError:
            self._refuse("an argument is neither a tensor nor hashable")
            return False
        sizes = [list(tensor.shape) for tensor in tensors]
        if self.sizes is None:
            self.sizes, self._form = sizes, form
            return False
        self._form = form if self._form is None else self._form
        if sizes != self.sizes or form != self._form:
            if len(sizes) == len(self.sizes) and form != self._form and not self._said:
                self._said = True
                _LOG.info("A step whose arguments in Python are other ones than the first step's is run by Pyro.")
            return False
        if self._graph is None or preprocess != self._preprocess:
            self._preprocess, self._build = preprocess, build
            around = (self.model, self.guide, self.objective, *batch.non_tensors())
            self._graph = Graph(self._loss_and_gradients, *around, **self.options)
            self._calls = 0
        return True

    def compare_soon(self) -> None:
        """Compare the graph with the program at the next call, unless that has been done a short time ago."""
        self._soon = self._calls - self._compared_at >= _LEAST_CALLS

    @property
    def will_compare(self) -> bool:
        """Whether the next call compares the graph with the program."""
        calls = self._calls + 1
        return self._soon or (calls > 1 and calls & (calls - 1) == 0) or calls - self._compared_at > _MOST_CALLS

    def __call__(self, batch: Batch) -> StepResult | None:
        """Compute a step that `accepts` has agreed to; None where it cannot be recorded after all."""
        assert self._graph is not None
        if self.pending is not None:
            result, self.pending = self.pending, None
            self._calls += 1
            return result
        tensors = batch.flatten()[0]
        try:
            if self.will_compare:
                self._soon, self._compared_at = False, self._calls
                static, results = self._graph.compare(*tensors)
            else:
                static, results = self._graph(*tensors)
        except GraphError as error:
            self._refuse(str(error))
            return None
        self._calls += 1
        return StepResult.of(static, results)

    def record(self, batch: Batch) -> tuple[Record, tuple[Tensor, ...]] | None:
        """Return the record of a step that `accepts` has agreed to, and its inputs; None where there is none.

        Nothing is computed, and nothing is refused: that is left to the call.
        """
        assert self._graph is not None
        inputs = tuple(tensor.contiguous() for tensor in batch.flatten()[0])
        try:
            return self._graph.recorded(inputs), inputs
        except GraphError:
            return None

    def set_compiled(self, compiled: bool) -> None:
        """Compile the record or do not, from the next step on, which makes it anew where that is a change."""
        if compiled != self.compiled:
            self.compiled = self.options["compiled"] = compiled
            self._graph = None

    def _refuse(self, reason: str) -> None:
        self._refused = True
        _LOG.warning("The step is not recorded: %s. Pyro runs every step.", reason)

    def capture_key(self, *tensors: Tensor) -> Any:
        """Return what a captured graph stands on: what Python decides by, and numbers that lie on the host."""
        assert self._graph is not None
        return self._graph.cuda_graph_key(tensors)

    def _loss_and_gradients(self, *tensors: Tensor) -> tuple[Any, tuple[Tensor | None, ...]]:
        """Return the names of the gradients with the store that they are of, and the numbers of an `StepResult`.

        The store is part of the key of the graph, so that what it was when the graph was recorded, it is at every call.
        """
        batch = self._build(list(tensors))
        if self._preprocess is not None:
            batch = Batch.of(batch.call(self._preprocess))
        with torch.enable_grad():
            objective, elbo = self.objective.bounds(self.model, self.guide, batch)
            loss = -objective.sum()
            every = {canonical_name(name): unconstrained_param(name) for name in pyro.get_param_store()}
            trained = {name: p for name, p in every.items() if p.requires_grad}
            gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        total = sum((gradient.sum() for gradient in gradients if gradient is not None), loss)
        known = list(trained), stored_ids()
        return known, (loss.detach(), elbo.sum(), total.detach().isfinite(), *gradients)
