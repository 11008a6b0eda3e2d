r"""How programs are drawn from and scored: as Pyro runs them, or by compiled graphs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pyro_vae.trace import densities
from pyro_vae.trace.batch import Batch, Program
from pyro_vae.trace.graphs.fx import GraphError, Tensors
from pyro_vae.trace.graphs.graph import Graph
from pyro_vae.trace.plates import Layout

_LOG = logging.getLogger("pyro_vae")


class EagerBackend:
    """Reads programs as Pyro runs them; kept from batch to batch, it remembers what has been checked once."""

    def __init__(self) -> None:
        self.checked: set[Any] = set()

    def start_batch(self) -> None:
        """Prepare for a batch of images."""

    def draw(
        self, guide: Program, batch: Batch, num_samples: int, layout: Layout
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Draw K particles and score them; see `densities.draw`."""
        return densities.draw(guide, batch, num_samples, layout)

    def log_density(
        self, program: Program, batch: Batch, values: Mapping[str, Tensor], layout: Layout
    ) -> dict[str, Tensor]:
        """Score a program at given latents; see `densities.log_density`."""
        return densities.log_density(program, batch, values, layout)


class CompiledBackend(EagerBackend):
    """Reads programs by compiled graphs, without gradients; kept from batch to batch, it compiles once.

    What comes in the shapes of a program's first call is compiled. The smaller rest at the end of a loop is not worth a
    compiler; it is read as it is, and so is what cannot be compiled, with a line of the log. The first call for each
    batch is made by Pyro as well, and a graph that differs from it is given up.
    """

    def __init__(self) -> None:
        super().__init__()
        self._graphs: dict[Any, tuple[Graph, Any]] = {}
        self._refused: set[Any] = set()
        self._compared: set[Any] = set()  # for the present batch

    def start_batch(self) -> None:
        """Prepare for a batch of images, for which every graph has yet to be compared with its program."""
        self._compared.clear()

    def draw(
        self, guide: Program, batch: Batch, num_samples: int, layout: Layout
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Draw K particles and score them; the same noise as without a graph."""

        def draws(batch: Batch, _: list[Tensor]) -> tuple[tuple[list[str], list[str]], Tensors]:
            values, log_q = densities.draw(guide, batch, num_samples, layout)
            return (list(values), list(log_q)), (*values.values(), *log_q.values())

        read = self._read(("draw", guide), draws, guide, batch, [], (num_samples, layout))
        if read is None:
            return densities.draw(guide, batch, num_samples, layout)
        (names, sites), tensors = read
        drawn, log_q = tensors[: len(names)], tensors[len(names) :]
        return dict(zip(names, drawn, strict=True)), dict(zip(sites, log_q, strict=True))

    def log_density(
        self, program: Program, batch: Batch, values: Mapping[str, Tensor], layout: Layout
    ) -> dict[str, Tensor]:
        """Score a program at given latents."""
        names = list(values)

        def scores(batch: Batch, latents: list[Tensor]) -> tuple[list[str], Tensors]:
            sites = densities.log_density(program, batch, dict(zip(names, latents, strict=True)), layout)
            return list(sites), tuple(site.detach() for site in sites.values())

        read = self._read(("score", program), scores, program, batch, list(values.values()), (names, layout))
        if read is None:
            return densities.log_density(program, batch, values, layout)
        return dict(zip(*read, strict=True))

    def _read(
        self, key: Any, function: Any, program: Program, batch: Batch, latents: list[Tensor], frozen: Any
    ) -> tuple[Any, Any] | None:
        """Call the graph of a function of a batch and latents, or return None where it is not to be compiled."""
        if key in self._refused:
            return None
        try:
            tensors, build, rest = batch.flatten()
        except TypeError:
            self._refuse(key, "an argument of the program is neither a tensor nor hashable")
            return None
        num_tensors = len(tensors)
        form = (frozen, rest, [(tensor.shape, tensor.dtype) for tensor in (*tensors, *latents)])
        if key not in self._graphs:  # a graph looks around its program once, and not at every chunk

            def of_tensors(*inputs: Tensor) -> Any:
                return function(build(list(inputs[:num_tensors])), list(inputs[num_tensors:]))

            self._graphs[key] = Graph(of_tensors, program, *batch.non_tensors()), form
        graph, compiled = self._graphs[key]
        if form != compiled:
            return None
        try:
            if key in self._compared:
                return graph(*tensors, *latents)
            self._compared.add(key)
            return graph.compare(*tensors, *latents)
        except GraphError as error:
            self._refuse(key, str(error))
            return None

    def _refuse(self, key: Any, reason: str) -> None:
        self._refused.add(key)
        _LOG.warning("Densities are not compiled: %s. Pyro runs the program every time.", reason)
