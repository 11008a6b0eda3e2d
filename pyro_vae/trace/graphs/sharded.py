r"""A recorded graph on some rows of a batch, with the noise of these rows drawn as for the whole batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_vae.errors import is_out_of_memory
from pyro_vae.trace.graphs.comparison import TOLERANCE, agree
from pyro_vae.trace.graphs.fx import GraphError, Tensors, compile_graph, in_one_line
from pyro_vae.trace.graphs.pure import PureGraph
from pyro_vae.trace.graphs.record import Record
from pyro_vae.trace.isolation import fork_rng
from pyro_vae.trace.row_noise import Draw, Rows
from pyro_vae.trace.seeds import global_generator

_LOG = logging.getLogger("pyro_vae")


class ShardedGraph:
    """A record without random operations, which is compared with the record when it is built.

    Args:
        record: A record that is not compiled.
        inputs: Inputs of the record.
        draws: The random operations of the recorded function, see `find_draws`.
        rows: Rows of the batch that the inputs contain, at least one.
        compiled: Whether the graph is compiled.
        tolerance: Relative difference attributed to rounding.

    Raises:
        GraphError: If the random operations differ from `draws`, or the graph gives different results.
    """

    def __init__(
        self,
        record: Record,
        inputs: Sequence[Tensor],
        draws: Sequence[Draw],
        rows: Rows,
        *,
        compiled: bool,
        tolerance: float = TOLERANCE,
    ) -> None:
        self.record, self.draws, self.rows, self.tolerance = record, draws, rows, tolerance
        self._pure = PureGraph.of(record.run)  # type: ignore[arg-type]  # a graph that is not compiled
        if len(draws) != len(self._pure.noise):
            raise GraphError("the record draws other random numbers than the program")
        self._noise = [
            torch.empty(
                noise.shape if draw.axis is None else draw.whole_shape(noise.shape, rows),
                dtype=noise.dtype,
                device=noise.device,
            )
            for draw, noise in zip(draws, self._pure.noise, strict=True)
        ]
        self._run = self._build(inputs, compiled)

    def __call__(self, inputs: Sequence[Tensor]) -> Tensors:
        """Run the graph; torch's generators advance as for the whole batch."""
        arguments = []
        for draw, noise, out in zip(self.draws, self._pure.noise, self._noise, strict=True):
            noise.draw(out, global_generator(noise.device))
            arguments.append(out if draw.axis is None else draw.select(out, self.rows))
        with torch.no_grad():
            return self._results(self._run(*inputs, *self.record.read(), *arguments))

    def _results(self, outputs: Sequence[Tensor]) -> Tensors:
        remaining = iter(outputs)
        return tuple(next(remaining) if there else None for there in self._pure.found)

    def _build(self, inputs: Sequence[Tensor], compiled: bool) -> Callable[..., Sequence[Tensor]]:
        run: Any = self._pure.module
        if compiled:
            own = [torch.zeros(n.shape, dtype=n.dtype, device=n.device) for n in self._pure.noise]
            try:
                with torch.no_grad():
                    run = compile_graph(run, [*inputs, *(t.detach() for t in self.record.read()), *own])
                if self._agrees(run, inputs):
                    return run
                reason = "the compiled graph gives other numbers"
            except Exception as error:  # compilers may raise anything
                if is_out_of_memory(error):
                    raise
                reason = in_one_line(error)
            _LOG.warning("Not compiled (%s): operations run one by one.", reason)
            run = self._pure.module
        if not self._agrees(run, inputs):
            raise GraphError("the graph without random operations gives other numbers than its record")
        return run

    def _agrees(self, run: Callable[..., Any], inputs: Sequence[Tensor]) -> bool:
        """Return whether the graph gives the results of the record on the same noise, with the same side effects."""
        ends = []
        for pure in (True, False):
            arguments = [*inputs, *self.record.read()]
            copies = [a.clone() if place in self._pure.written else a for place, a in enumerate(arguments)]
            with fork_rng(inputs[0]), torch.no_grad():
                # The fork starts from the same state both times.
                if pure:
                    own = [torch.empty(n.shape, dtype=n.dtype, device=n.device) for n in self._pure.noise]
                    for noise, out in zip(self._pure.noise, own, strict=True):
                        noise.draw(out, global_generator(noise.device))
                    results = self._results(run(*copies, *own))
                else:
                    results = self.record.run(*copies)
            ends.append([*results, *(copies[place] for place in sorted(self._pure.written))])
        return agree(list(zip(*ends, strict=True)), self.tolerance)
