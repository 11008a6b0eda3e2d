r"""Record the loss and the gradients of a step as one graph, from the indices of its images to the finiteness flag."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.infer.comparisons import Comparisons
from pyro_vae.infer.compiled_step import CompiledStep
from pyro_vae.infer.gate import Gate
from pyro_vae.infer.objectives.objective import Objective
from pyro_vae.infer.parameters import canonical_name, unconstrained_param
from pyro_vae.infer.precision import PRECISIONS
from pyro_vae.infer.step_result import StepResult
from pyro_vae.trace import Batch, Graph, GraphError, Program, Record, stored_ids

_LOG = logging.getLogger("pyro_vae")

Preprocess = Callable[..., Any]

# Relative difference attributed to rounding in bfloat16 products; other precisions use the default of `Graph`.
_TOLERANCES = {"bf16": 0.02}


class RecordedStep:
    """A recorded step for batches of one size and structure; other batches, e.g. the last of an epoch, are declined.

    The graph is compared with the program, on the current batch and the same noise, as `Comparisons` schedules. If the
    results differ, all later steps run eagerly.

    Args:
        model: Callable that defines p(x, z).
        guide: Callable that defines q(z|x).
        objective: Objective to maximize.
        compiled: Whether to compile the graph, which then may contain the update of the parameters.
        precision: Precision of matrix products, a key of `PRECISIONS`.
    """

    def __init__(
        self, model: Program, guide: Program, objective: Objective, *, compiled: bool, precision: str = "float32"
    ) -> None:
        self.model, self.guide, self.objective, self.compiled = model, guide, objective, compiled
        self.options: dict[str, Any] = {}
        if precision in _TOLERANCES:
            self.options["tolerance"] = _TOLERANCES[precision]
        # Saved with the run: otherwise a run resumed just before the last batch of an epoch would record its size.
        self.sizes: list[list[int]] | None = None
        self._form: Any = None  # structure of the arguments, and those that are not tensors
        self._preprocess: Preprocess | None = None
        self._build: Any = None
        self._graph: Graph | None = None
        self._compiled: dict[int, CompiledStep] = {}  # by the id of the record, which it holds
        self._refused = self._logged = False
        self.comparisons = Comparisons()
        self.pending: StepResult | None = None  # of the next call, if computed in a batched graph

    def accepts(self, preprocess: Preprocess | None, batch: Batch) -> bool:
        """Return whether the graph takes a step on a batch, including `preprocess`.

        It does not take the first step, which registers the parameters and validates the program.
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
            if len(sizes) == len(self.sizes) and form != self._form and not self._logged:
                self._logged = True
                _LOG.info("Steps whose non-tensor arguments differ from those of the first step run eagerly.")
            return False
        if self._graph is None or preprocess != self._preprocess:
            self._preprocess, self._build = preprocess, build
            watched = (self.model, self.guide, self.objective, *batch.non_tensors())
            self._graph = Graph(self._loss_and_gradients, *watched, compiled=False, in_nats=slice(2), **self.options)
            self._compiled = {}
            self.comparisons = Comparisons()
        return True

    def __call__(self, batch: Batch, gate: Gate | None = None) -> StepResult | None:
        """Compute a step that `accepts` approved; return None if it turns out that it cannot be recorded.

        Args:
            batch: Batch of the step.
            gate: The gate of the optimizer, if the step may include the update of the parameters.

        Raises:
            NonFiniteError: If the step includes the update, on the CPU, and the loss or a gradient is non-finite.
        """
        assert self._graph is not None
        if self.pending is not None:
            result, self.pending = self.pending, None
            self.comparisons.calls += 1
            return result
        if self.comparisons.due() and not self.compare(batch):
            return None
        found = self.record(batch)
        if found is None:
            return None
        record, inputs = found
        self.comparisons.calls += 1
        with torch.no_grad():
            if not self.compiled:
                return StepResult.of(record.static, record.run(*inputs, *record.read()))
            if id(record) not in self._compiled:
                self._compiled[id(record)] = CompiledStep(self._graph, record)
            return StepResult.of(record.static, *self._compiled[id(record)](inputs, gate))

    def compare(self, batch: Batch) -> bool:
        """Compare the graph with the program on a batch, without side effects; return whether they agree.

        If not, all later steps run eagerly.
        """
        assert self._graph is not None
        self.comparisons.note()
        try:
            self._graph.check(*batch.flatten()[0])
        except GraphError as error:
            self._refuse(str(error))
        return not self._refused

    @property
    def capturable(self) -> bool:
        """Whether a call may be captured as a CUDA graph: it is compiled, and does not wait for the device."""
        records = [] if self._graph is None else self._graph._records.values()
        return self.compiled and not any(record.masks for record in records)  # their values are read at each call

    def record(self, batch: Batch) -> tuple[Record, tuple[Tensor, ...]] | None:
        """Return the record of a step that `accepts` has approved, and its inputs; None if it cannot be recorded.

        Nothing is computed. If it cannot be recorded, all later steps run eagerly.
        """
        assert self._graph is not None
        inputs = tuple(tensor.contiguous() for tensor in batch.flatten()[0])
        try:
            return self._graph.recorded(inputs), inputs
        except GraphError as error:
            self._refuse(str(error))
            return None

    def set_compiled(self, compiled: bool) -> None:
        """Set whether the record is compiled; a change discards the present record."""
        if compiled != self.compiled:
            self.compiled = compiled
            self._graph, self._compiled = None, {}

    def _refuse(self, reason: str) -> None:
        self._refused = True
        _LOG.warning("The step is not recorded: %s. Every step runs eagerly.", reason)

    def capture_key(self, *tensors: Tensor) -> Any:
        """Return the key of a captured CUDA graph, which must be captured again when the key changes."""
        assert self._graph is not None
        return self._graph.cuda_graph_key(tensors)

    def _loss_and_gradients(self, *tensors: Tensor) -> tuple[Any, tuple[Tensor | None, ...]]:
        """Return the names of the gradients with the `stored_ids`, and the tensors of a `StepResult`.

        Names and ids are static values of the graph: the param store is part of its cache key, and so the same at
        every call.
        """
        batch = self._build(list(tensors))
        if self._preprocess is not None:
            batch = Batch.of(batch.call(self._preprocess))
        with torch.enable_grad():
            objective, elbo = self.objective.bounds(self.model, self.guide, batch)
            loss = -objective.sum()
            params = {canonical_name(name): unconstrained_param(name) for name in pyro.get_param_store()}
            trained = {name: p for name, p in params.items() if p.requires_grad}
            gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        # One flag for all: a sum is non-finite if one of its entries is.
        total = sum((gradient.sum() for gradient in gradients if gradient is not None), loss)
        static = list(trained), stored_ids()
        return static, (loss.detach(), elbo.sum(), total.detach().isfinite(), *gradients)


def recorded_step(
    model: Program, guide: Program, loss: Any, execution: str | None, precision: str
) -> RecordedStep | None:
    """Return the recorded step of a driver, or None if every step runs the program.

    Raises:
        UserError: If `execution` or `precision` is unknown, or `loss` is no `Objective` and cannot be recorded.
    """
    if execution not in (None, "recorded", "compiled"):
        raise UserError(f"execution is {execution!r}; choose 'recorded', 'compiled' or None.")
    if precision not in PRECISIONS:
        raise UserError(f"precision is {precision!r}; choose one of {', '.join(PRECISIONS)}.")
    if execution is None:
        return None
    if not isinstance(loss, Objective):
        kind = type(loss).__name__
        raise UserError(f"execution={execution!r} requires an objective of pyro_vae, not {kind}: leave it out.")
    return RecordedStep(model, guide, loss, compiled=execution == "compiled", precision=precision)
