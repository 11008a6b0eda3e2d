r"""How programs are drawn from and scored: as Pyro runs them, or by compiled graphs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pyro_vae.trace import densities
from pyro_vae.trace.graph import Graph
from pyro_vae.trace.reading import Program
from pyro_vae.trace.records import GraphError, Tensors

_LOG = logging.getLogger("pyro_vae")


class Reader:
    """Reads programs as Pyro runs them."""

    def draw(self, guide: Program, x: Tensor, num_samples: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Draw K particles and score them; see `densities.draw`."""
        return densities.draw(guide, x, num_samples)

    def log_density(self, program: Program, x: Tensor, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Score a program at given latents; see `densities.log_density`."""
        return densities.log_density(program, x, values)


class CompiledReader(Reader):
    """Reads programs by compiled graphs, without gradients; kept from batch to batch, it compiles once.

    What comes in the shapes of a program's first call is compiled. The smaller rest at the end of a loop is not worth a
    compiler; it is read as it is, and so is what cannot be compiled, with a line of the log.
    """

    def __init__(self) -> None:
        self._graphs: dict[Any, tuple[Graph, Any]] = {}
        self._refused: set[Any] = set()

    def draw(self, guide: Program, x: Tensor, num_samples: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Draw K particles and score them; the same noise as without a graph."""

        def draws(x: Tensor) -> tuple[tuple[list[str], list[str]], Tensors]:
            values, log_q = densities.draw(guide, x, num_samples)
            return (list(values), list(log_q)), (*values.values(), *log_q.values())

        read = self._read(("draw", guide), draws, guide, (x,), num_samples)
        if read is None:
            return densities.draw(guide, x, num_samples)
        (names, sites), tensors = read
        drawn, log_q = tensors[: len(names)], tensors[len(names) :]
        return dict(zip(names, drawn, strict=True)), dict(zip(sites, log_q, strict=True))

    def log_density(self, program: Program, x: Tensor, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Score a program at given latents."""
        names = list(values)

        def scores(x: Tensor, *latents: Tensor) -> tuple[list[str], Tensors]:
            sites = densities.log_density(program, x, dict(zip(names, latents, strict=True)))
            return list(sites), tuple(site.detach() for site in sites.values())

        read = self._read(("score", program), scores, program, (x, *values.values()), names)
        if read is None:
            return densities.log_density(program, x, values)
        return dict(zip(*read, strict=True))

    def _read(
        self, key: Any, function: Any, program: Program, inputs: tuple[Tensor, ...], frozen: Any
    ) -> tuple[Any, Any] | None:
        """Call the graph of a function, or return None where it is not to be compiled."""
        form = (frozen, [(tensor.shape, tensor.dtype) for tensor in inputs])
        if key not in self._graphs:  # a graph looks for the modules of its program, once and not at every chunk
            self._graphs[key] = Graph(function, program), form
        graph, compiled = self._graphs[key]
        if key in self._refused or form != compiled:
            return None
        try:
            return graph(*inputs)
        except GraphError as error:
            self._refused.add(key)
            _LOG.warning("Densities are not compiled: %s. Pyro runs the program every time.", error)
            return None
