r"""A recorded graph on parts of a batch, whose noise is that of their rows when drawn for the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_vae.trace.graphs.comparison import TOLERANCE, agree, compile_if_right
from pyro_vae.trace.graphs.fx import GraphError, Tensors, compile_graph
from pyro_vae.trace.graphs.pure import PureGraph
from pyro_vae.trace.graphs.record import Record
from pyro_vae.trace.isolation import fork_rng
from pyro_vae.trace.row_noise import Draw, Rows
from pyro_vae.trace.seeds import global_generator


class ShardedGraph:
    """A record without random operations, which is compared with the record when it is built.

    Args:
        record: A record that is not compiled.
        inputs: Inputs of the record.
        draws: The random operations of the recorded function, see `find_draws`.
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
        *,
        compiled: bool,
        tolerance: float = TOLERANCE,
    ) -> None:
        self.record, self.draws, self.tolerance = record, draws, tolerance
        self._pure = PureGraph.of(record.run)  # type: ignore[arg-type]  # a graph that is not compiled
        if len(draws) != len(self._pure.noise):
            raise GraphError("the record draws other random numbers than the program")
        self._run = self._build(inputs, compiled)

    def __call__(self, parts: Sequence[tuple[Rows, Sequence[Tensor]]]) -> list[Tensors]:
        """Run the graph on parts of one batch; torch's generators advance once, as for the whole batch.

        Args:
            parts: Rows of each part, at least one, and the inputs that contain them.
        """
        whole = []
        for draw, noise in zip(self.draws, self._pure.noise, strict=True):
            # The last batch of an epoch may have a part of the recorded size and another number of images in all.
            shape = noise.shape if draw.axis is None else draw.whole_shape(noise.shape, parts[0][0])
            out = torch.empty(shape, dtype=noise.dtype, device=noise.device)
            noise.draw(out, global_generator(noise.device))
            whole.append(out)
        results = []
        for rows, inputs in parts:
            own = [
                out if draw.axis is None else draw.select(out, rows)
                for draw, out in zip(self.draws, whole, strict=True)
            ]
            with torch.no_grad():
                results.append(self._pure.results(self._run(*inputs, *self.record.read(), *own)))
        return results

    def _build(self, inputs: Sequence[Tensor], compiled: bool) -> Callable[..., Sequence[Tensor]]:
        pure = self._pure
        if compiled:
            arguments = [*inputs, *(t.detach() for t in self.record.read()), *(noise.empty() for noise in pure.noise)]
            with torch.no_grad():
                run = compile_if_right(
                    lambda: compile_graph(pure.module, arguments), lambda run: self._agrees(run, inputs)
                )
            if run is not None:
                return run  # type: ignore[return-value]  # without None
        if not self._agrees(pure.module, inputs):
            raise GraphError("the graph without random operations gives other numbers than its record")
        return pure.module

    def _agrees(self, run: Callable[..., Any], inputs: Sequence[Tensor]) -> bool:
        """Return whether the graph gives the results of the record on the same noise, with the same side effects."""
        ends = []
        for pure in (True, False):
            arguments = [*inputs, *self.record.read()]
            copies = [a.clone() if place in self._pure.written else a for place, a in enumerate(arguments)]
            with fork_rng(inputs[0]), torch.no_grad():
                # The fork starts from the same state both times.
                results = self._pure.results(run(*copies, *self._pure.draw())) if pure else self.record.run(*copies)
            ends.append([*results, *(copies[place] for place in sorted(self._pure.written))])
        return agree(list(zip(*ends, strict=True)), self.tolerance)
