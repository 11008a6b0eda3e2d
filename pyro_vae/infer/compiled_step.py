r"""A compiled step: the recorded graph of loss and gradients and, for a plain Adam, the update of the parameters."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable
from typing import Any, cast

from torch import Tensor
from torch.fx import GraphModule, Node

from pyro_vae.infer.gate import Gate
from pyro_vae.infer.update_graph import Update
from pyro_vae.trace import Graph, Record
from pyro_vae.trace.graphs.comparison import compile_checked, without_effects
from pyro_vae.trace.graphs.fx import Tensors
from pyro_vae.trace.graphs.pure import written_inputs

_LOG = logging.getLogger("pyro_vae")


class CompiledStep:
    """A compiled record of loss and gradients; compiled once, with the update or without.

    Args:
        graph: Graph to which the record belongs.
        record: Record that is not compiled.
    """

    def __init__(self, graph: Graph, record: Record) -> None:
        self.graph, self.record = graph, record
        self._module = cast(GraphModule, record.run)
        (output,) = self._module.graph.find_nodes(op="output")
        pairs = zip(record.static[0], output.args[0][3:], strict=True)
        self._names = [name for name, gradient in pairs if isinstance(gradient, Node)]
        self._places = {id(tensor): place for place, tensor in enumerate(record.outside)}
        self._gradients: Callable[..., Tensors] | None = None
        self._whole: Callable[..., Tensors] | None = None
        self._form: Any = None  # options and forms of the tensors for which `_whole` has been compiled
        self._bound: list[Any] = []  # those of the last call
        self._separate = False  # whether the optimizer takes all steps by itself

    def __call__(self, inputs: tuple[Tensor, ...], gate: Gate | None) -> tuple[Tensors, bool]:
        """Return loss, ELBO, finiteness and gradients, and whether the parameters have been updated.

        Args:
            inputs: Inputs of the record.
            gate: Gate of the optimizer, if the step may include the update.

        Raises:
            NonFiniteError: On the CPU, if the step includes the update, and the loss or a gradient is non-finite.
        """
        update = None if gate is None or self._separate else Update.of(gate, self._names)
        if update is not None and self._contains(update, inputs):
            assert self._whole is not None
            results = self._whole(*inputs, *self.record.read(), *update.arguments())
            update.gate.accept_update()
            return results, True
        if self._gradients is None:
            self._gradients = self._compile(self._module, inputs, self.record.read()) or self._module
        return self._gradients(*inputs, *self.record.read()), False

    def _contains(self, update: Update, inputs: tuple[Tensor, ...]) -> bool:
        """Return whether there is a compiled graph with this update; build one if its form is new."""
        bound = [*update.params, *update.state, *update.options]
        if len(bound) != len(self._bound) or not all(map(operator.is_, bound, self._bound)):
            form = [(t.shape, t.stride(), t.dtype) for t in (*update.params, *update.state)], update.options
            if form != self._form:
                self._whole = self._build(update, inputs)
                self._form = None if self._whole is None else form
            self._bound = bound if self._whole else []
        return self._whole is not None

    def _build(self, update: Update, inputs: tuple[Tensor, ...]) -> Callable[..., Tensors] | None:
        """Compile the record with the update; return None if that is impossible or gives other results."""
        read = self.record.read()
        if not all(id(p) in self._places for p in update.params) or not update.is_supported([*inputs, *read]):
            return None
        places = [len(inputs) + self._places[id(p)] for p in update.params]
        graph = update.append_to(self._module, places)
        written = written_inputs(graph.graph)

        def scratch() -> list[Tensor]:
            arguments = [*inputs, *read, *update.arguments()]
            return [a.detach().clone() if place in written else a for place, a in enumerate(arguments)]

        run = self._compile(graph, inputs, scratch()[len(inputs) :])
        if run is None:  # a second attempt, without the update, would take as long to fail
            self._separate, self._gradients = True, self._module
            return None
        arguments = scratch()
        with without_effects(inputs[0], self.graph.surroundings):
            _, _, finite, *gradients = run(*arguments)
        first = len(inputs) + len(read)
        found = [arguments[place] for place in (*places, *range(first, first + len(update.state)))]
        if not finite:  # the step changes nothing, and so shows nothing
            return None
        if update.is_taken([g for g in gradients if g is not None], found):
            return run
        self._separate = True
        _LOG.warning("The compiled step does not update the parameters: its results differ from the optimizer's.")
        return None

    def _compile(
        self, graph: GraphModule, inputs: tuple[Tensor, ...], outside: list[Tensor]
    ) -> Callable[..., Tensors] | None:
        """Compile a graph whose results are those of the record."""

        def expected(*inputs: Tensor) -> Tensors:
            return self.record.run(*inputs, *self.record.read())

        check = self.graph.surroundings, self.graph.tolerance, self.graph.in_nats
        return compile_checked(graph, inputs, outside, expected, *check)
