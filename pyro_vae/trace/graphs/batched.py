r"""Several records with the same operations as one batched graph.

S records with the same code and tensors of equal shapes are one function under `torch.func.vmap`. The noise of each is
an input, drawn in the order of the record from the generator of that record.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.errors import is_out_of_memory
from pyro_vae.trace.graphs.comparison import TOLERANCE, agree, compile_if_right
from pyro_vae.trace.graphs.fx import GraphError, Tensors, compile_graph, in_one_line
from pyro_vae.trace.graphs.pure import PureGraph, check_alike
from pyro_vae.trace.graphs.record import Record
from pyro_vae.trace.graphs.stacks import Stack
from pyro_vae.trace.isolation import fork_rng
from pyro_vae.trace.seeds import global_generator

Generators = Callable[[torch.device], torch.Generator]
Inputs = Mapping[int, Sequence[Tensor]]


class BatchedGraph:
    """S records as one graph, which is compared with each of them when it is built.

    Args:
        records: Records that are not compiled, by their position.
        generators: Functions that return the generator of each record on a device, by its position.
        inputs: Inputs of each record, by its position.
        size: Number S of positions. Those without a record are computed, and their results are not used.
        compiled: Whether the graph is compiled.
        tolerance: Relative difference attributed to rounding.

    Raises:
        GraphError: If the records differ in more than the values of tensors, or the batched graph cannot be made or
            gives different results.
    """

    def __init__(
        self,
        records: Mapping[int, Record],
        generators: Mapping[int, Generators],
        inputs: Inputs,
        *,
        size: int,
        compiled: bool,
        tolerance: float = TOLERANCE,
    ) -> None:
        self.records, self.generators, self.size, self.tolerance = records, generators, size, tolerance
        self._stacks: list[Stack] = []
        check_alike(list(records.values()))
        first = next(iter(records.values()))
        self._pure = PureGraph.of(first.run)  # type: ignore[arg-type]  # a graph that is not compiled
        self._num_outside = len(first.outside)
        self._num_inputs = len(next(iter(inputs.values())))
        if any(place < self._num_inputs for place in self._pure.written):
            raise GraphError("it writes to its batch")
        self._noise = [torch.zeros(size, *n.shape, dtype=n.dtype, device=n.device) for n in self._pure.noise]
        try:
            self._stack(records)
            self._shared = [stack.shared for stack in self._stacks]
            self._run = self._build(inputs, compiled)
        except BaseException:
            self.release()
            raise

    def __call__(self, inputs: Inputs) -> dict[int, Tensors]:
        """Run the graph, including its writes to external tensors.

        Args:
            inputs: Inputs by the position of the record. Records that have left may not return before `release`.

        Returns:
            The results of each record by its position.

        Raises:
            GraphError: If records have started or stopped sharing external tensors.
        """
        self._refresh(inputs)
        self._draw(inputs)
        with torch.no_grad():
            results = self._split(self._run(*self._arguments(inputs)), inputs)
            for stack in self._stacks:
                stack.write_back(inputs)
        return results

    def check(self, inputs: Inputs) -> None:
        """Compare the graph with each record on the same noise, without side effects.

        Raises:
            GraphError: If results differ, or as for a call.
        """
        self._refresh(inputs)
        if not self._agrees(self._run, inputs):
            raise GraphError("the graph of all fits gives other numbers than that of one")

    def leave(self, position: int) -> None:
        """Give the tensors of a record their own memory; the graph then computes unused results in its place."""
        for stack in self._stacks:
            stack.release(position)

    def release(self) -> None:
        """Give the tensors of all records their own memory; the next call stacks them again."""
        for stack in self._stacks:
            stack.release_all()
        self._stacks = []

    def _stack(self, positions: Iterable[int]) -> None:
        """Stack the external tensors of some records."""
        chosen = {position: self.records[position].read() for position in positions}
        for place in range(self._num_outside):
            column = {position: tensors[place] for position, tensors in chosen.items()}
            written = self._num_inputs + place in self._pure.written
            self._stacks.append(Stack(column, self.size, written))

    def _refresh(self, inputs: Inputs) -> None:
        """Read the current external tensors."""
        columns = zip(*(self.records[position].read() for position in inputs), strict=True)
        by_position = (dict(zip(inputs, column, strict=True)) for column in columns)
        if not self._stacks or not all([s.refresh(t) for s, t in zip(self._stacks, by_position, strict=True)]):
            self.release()
            self._stack(inputs)
            if [stack.shared for stack in self._stacks] != self._shared:
                raise GraphError("fits have come to share tensors, or no longer do")

    def _draw(self, inputs: Inputs) -> None:
        for position in inputs:
            for out, noise in zip(self._noise, self._pure.noise, strict=True):
                noise.draw(out[position], self.generators[position](noise.device))

    def _arguments(self, inputs: Inputs) -> list[Tensor]:
        """Return the arguments of the graph; a record that has left gets the inputs of another one."""
        some = next(iter(inputs.values()))
        rows = [inputs.get(position, some) for position in range(self.size)]
        stacked = [torch.stack(tensors) for tensors in zip(*rows, strict=True)]
        return [*stacked, *(stack.value for stack in self._stacks), *self._noise]

    def _split(self, outputs: Sequence[Tensor], inputs: Inputs) -> dict[int, Tensors]:
        rows = list(zip(*(output.unbind() for output in outputs), strict=True))
        return {position: self._pure.results(rows[position]) for position in inputs}

    def _scratch(self, arguments: list[Tensor]) -> list[Tensor]:
        """Return the arguments, with copies of those that the graph writes to."""
        return [a.clone() if place in self._pure.written else a for place, a in enumerate(arguments)]

    def _build(self, inputs: Inputs, compiled: bool) -> Callable[..., Sequence[Tensor]]:
        """Return the batched graph, after comparing it with each record."""
        dims = [0] * self._num_inputs + [None if shared else 0 for shared in self._shared] + [0] * len(self._noise)
        every = torch.func.vmap(self._pure.module, in_dims=tuple(dims))

        def contiguous(*arguments: Tensor) -> list[Tensor]:  # some optimizers assume the layout of gradients
            return [output.contiguous() for output in every(*arguments)]

        arguments = self._arguments(inputs)
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about operations that are slow under vmap
                graph = make_fx(contiguous)(*self._scratch(arguments))
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise GraphError(f"it has no batched form ({in_one_line(error)})") from error
        if compiled:
            with torch.no_grad():
                run = compile_if_right(lambda: compile_graph(graph, arguments), lambda run: self._agrees(run, inputs))
            if run is not None:
                return run  # type: ignore[return-value]  # without None
        if not self._agrees(graph, inputs):
            raise GraphError("the graph of all fits gives other numbers than that of one")
        return graph

    def _agrees(self, run: Callable[..., Any], inputs: Inputs) -> bool:
        """Return whether the graph gives the results of each record and the same writes to external tensors."""
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
