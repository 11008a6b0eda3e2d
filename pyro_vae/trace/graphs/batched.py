r"""Records of the same operations as one graph, with a dimension in front for the records.

A record is a function of tensors, so S records of one code on tensors of equal shapes are that function under
`torch.func.vmap`: a product of matrices becomes one batched product. The draws of a record are inputs here, and each
record's are drawn by its own generator in its own order, so that it computes with the numbers that it would have drawn.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.errors import is_out_of_memory
from pyro_vae.trace.graphs.comparison import TOLERANCE, agree
from pyro_vae.trace.graphs.fx import GraphError, Tensors, compile_graph, in_one_line
from pyro_vae.trace.graphs.pure import PureGraph, check_alike
from pyro_vae.trace.graphs.record import Record
from pyro_vae.trace.graphs.stacks import Stack
from pyro_vae.trace.isolation import fork_rng
from pyro_vae.trace.seeds import global_generator

_LOG = logging.getLogger("pyro_vae")

Generators = Callable[[torch.device], torch.Generator]
Inputs = Mapping[int, Sequence[Tensor]]


class BatchedGraph:
    """S records as one graph.

    Args:
        records: that are not compiled, of any number S.
        generators: for each record, the generator on a device from which it draws.
        inputs: of each record, by its position.
        compiled: whether the graph is compiled.
        tolerance: relative difference that rounding may make.

    Raises:
        GraphError: the records differ in more than the values of tensors, or have no common graph of their numbers.
    """

    def __init__(
        self,
        records: Sequence[Record],
        generators: Sequence[Generators],
        inputs: Inputs,
        *,
        compiled: bool,
        tolerance: float = TOLERANCE,
    ) -> None:
        self.records, self.generators, self.tolerance = list(records), list(generators), tolerance
        self._stacks: list[Stack] = []
        check_alike(self.records)
        self._pure = PureGraph.of(records[0].run)  # type: ignore[arg-type]  # a graph that is not compiled
        self._num_outside = len(records[0].outside)
        self._num_inputs = len(next(iter(inputs.values())))
        if any(place < self._num_inputs for place in self._pure.written):
            raise GraphError("it writes to its batch")
        size = len(records)
        self._noise = [torch.zeros(size, *n.shape, dtype=n.dtype, device=n.device) for n in self._pure.noise]
        try:
            self._stack(range(size))
            self._shared = [stack.shared for stack in self._stacks]
            self._run = self._build(inputs, compiled)
        except BaseException:
            self.release()
            raise

    def __call__(self, inputs: Inputs) -> dict[int, Tensors]:
        """Run the graph, with all that the records do to tensors outside.

        Args:
            inputs: by the positions of the records that take part. Those that have left stay away until `release`.

        Returns:
            The results of each, views of tensors that no later call writes to.

        Raises:
            GraphError: tensors that records have for themselves have become common ones, or the other way round.
        """
        self._refresh(inputs)
        self._draw(inputs)
        with torch.no_grad():
            results = self._split(self._run(*self._arguments(inputs)), inputs)
            for stack in self._stacks:
                stack.write_back(inputs)
        return results

    def check(self, inputs: Inputs) -> None:
        """Compare the graph with each record on the same noise; nothing is drawn or changed.

        Raises:
            GraphError: as a call, or numbers differ.
        """
        self._refresh(inputs)
        if not self._agrees(self._run, inputs):
            raise GraphError("the graph of all fits gives other numbers than that of one")

    def leave(self, position: int) -> None:
        """Give the tensors of a record memory of their own; what the graph computes in their place is of no use."""
        for stack in self._stacks:
            stack.release(position)

    def release(self) -> None:
        """Give the tensors of all records memory of their own; the next call stacks them again."""
        for stack in self._stacks:
            stack.release_all()
        self._stacks = []

    def _stack(self, positions: Iterable[int]) -> None:
        """Stack the tensors outside of some records; the places of the others are filled with those of one of them."""
        chosen = {position: self.records[position].read() for position in positions}
        for place in range(self._num_outside):
            column = {position: tensors[place] for position, tensors in chosen.items()}
            written = self._num_inputs + place in self._pure.written
            self._stacks.append(Stack(column, len(self.records), written))

    def _refresh(self, inputs: Inputs) -> None:
        """Take the tensors outside as they are now."""
        columns = zip(*(self.records[position].read() for position in inputs), strict=True)
        taken = [
            stack.refresh(dict(zip(inputs, column, strict=True)))
            for stack, column in zip(self._stacks, columns, strict=False)
        ]
        if not taken or not all(taken):
            self.release()
            self._stack(inputs)
            if [stack.shared for stack in self._stacks] != self._shared:
                raise GraphError("fits have come to share tensors, or no longer do")

    def _draw(self, inputs: Inputs) -> None:
        for position in inputs:
            for out, noise in zip(self._noise, self._pure.noise, strict=True):
                noise.draw(out[position], self.generators[position](noise.device))

    def _arguments(self, inputs: Inputs) -> list[Tensor]:
        """Return what the graph takes; the inputs of a record that has left are those of another one."""
        some = next(iter(inputs.values()))
        rows = [inputs.get(position, some) for position in range(len(self.records))]
        stacked = [torch.stack(tensors) for tensors in zip(*rows, strict=True)]
        return [*stacked, *(stack.value for stack in self._stacks), *self._noise]

    def _split(self, outputs: Sequence[Tensor], inputs: Inputs) -> dict[int, Tensors]:
        rows = list(zip(*(output.unbind() for output in outputs), strict=True))
        split: dict[int, Tensors] = {}
        for position in inputs:
            row = iter(rows[position])
            split[position] = tuple(next(row) if there else None for there in self._pure.found)
        return split

    def _scratch(self, arguments: list[Tensor]) -> list[Tensor]:
        """Return arguments with copies of what the graph writes to."""
        return [a.clone() if place in self._pure.written else a for place, a in enumerate(arguments)]

    def _build(self, inputs: Inputs, compiled: bool) -> Callable[..., Sequence[Tensor]]:
        """Return the graph of all records, which agrees with each of them."""
        dims = [0] * self._num_inputs + [None if shared else 0 for shared in self._shared] + [0] * len(self._noise)
        every = torch.func.vmap(self._pure.module, in_dims=tuple(dims))

        def contiguous(*arguments: Tensor) -> list[Tensor]:  # optimizers may take the layout of gradients on trust
            return [output.contiguous() for output in every(*arguments)]

        arguments = self._arguments(inputs)
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of operations that are slow under vmap
                graph = make_fx(contiguous)(*self._scratch(arguments))
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise GraphError(f"it has no batched form ({in_one_line(error)})") from error
        if compiled:
            try:
                with torch.no_grad():
                    run = compile_graph(graph, arguments)
                if self._agrees(run, inputs):
                    return run  # type: ignore[return-value]  # without None
                reason = "the compiled graph gives other numbers"
            except Exception as error:  # a compiler may fail in any way
                if is_out_of_memory(error):
                    raise
                reason = in_one_line(error)
            _LOG.warning("Not compiled (%s): operations run one by one.", reason)
        if not self._agrees(graph, inputs):
            raise GraphError("the graph of all fits gives other numbers than that of one")
        return graph

    def _agrees(self, run: Callable[..., Any], inputs: Inputs) -> bool:
        """Whether a graph does for each record what the record does: results, and what it leaves in tensors outside."""
        devices = {noise.device for noise in self._pure.noise}
        generators = [(p, device, self.generators[p](device)) for p in inputs for device in devices]
        before = [generator.get_state() for _, _, generator in generators]
        self._draw(inputs)
        after = [generator.get_state() for _, _, generator in generators]
        for (_, _, generator), state in zip(generators, before, strict=True):
            generator.set_state(state)
        arguments = self._scratch(self._arguments(inputs))
        with torch.no_grad():
            results = self._split(run(*arguments), inputs)
        written = sorted(self._pure.written)
        for position, tensors in inputs.items():
            with fork_rng(tensors[0]), torch.no_grad():
                drawn = [(d, a, b) for (p, d, _), a, b in zip(generators, before, after, strict=True) if p == position]
                for device, state, _ in drawn:
                    global_generator(device).set_state(state)
                own = self._scratch([*tensors, *self.records[position].read()])
                expected = self.records[position].run(*own)
                if not all(torch.equal(global_generator(device).get_state(), state) for device, _, state in drawn):
                    return False
            pairs = list(zip(expected, results[position], strict=True))
            pairs += [(own[place], arguments[place][position]) for place in written]
            if not agree(pairs, self.tolerance):
                return False
        return True
