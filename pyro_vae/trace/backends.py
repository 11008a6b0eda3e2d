r"""Backends that sample from and score models and guides: eager Pyro or compiled graphs."""

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
    """Run programs in Pyro.

    Reuse one instance for all batches: `checked` holds the keys of checks that a caller needs to run only once.
    """

    def __init__(self) -> None:
        self.checked: set[Any] = set()

    def start_batch(self) -> None:
        """Prepare for a new batch of images. The eager backend has nothing to do."""

    def draw(
        self, guide: Program, batch: Batch, num_samples: int, layout: Layout
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Sample K particles from a guide and score them. See `densities.draw`."""
        return densities.draw(guide, batch, num_samples, layout)

    def log_density(
        self, program: Program, batch: Batch, values: Mapping[str, Tensor], layout: Layout
    ) -> dict[str, Tensor]:
        """Score a model or guide at given latents. See `densities.log_density`."""
        return densities.log_density(program, batch, values, layout)


class CompiledBackend(EagerBackend):
    """Run programs as compiled graphs, without gradients.

    Reuse one instance for all batches, so that it compiles once. Only the shapes of the first call of a model or guide
    are compiled. Other shapes, such as a smaller last chunk, run eagerly because they do not repay the compilation.
    Programs that cannot be compiled also run eagerly, and the reason is logged. The first call for every batch runs
    both the graph and Pyro; if a log-density differs by more than rounding, 1e-3 nats, or a latent by more than 1e-4 of
    the largest, the graph is discarded.
    """

    def __init__(self) -> None:
        super().__init__()
        self._graphs: dict[Any, tuple[Graph, Any]] = {}
        self._refused: set[Any] = set()
        self._compared: set[Any] = set()  # keys of graphs already compared on this batch

    @property
    def num_refused(self) -> int:
        """Number of functions that run eagerly from now on, because their graphs are not possible or have failed."""
        return len(self._refused)

    def start_batch(self) -> None:
        """Prepare for a new batch of images: every graph is compared with its program once more."""
        self._compared.clear()

    def draw(
        self, guide: Program, batch: Batch, num_samples: int, layout: Layout
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Sample K particles from a guide and score them, with the same noise as the eager backend."""

        def draws(batch: Batch, _: list[Tensor]) -> tuple[tuple[list[str], list[str]], Tensors]:
            values, log_q = densities.draw(guide, batch, num_samples, layout)
            return (list(values), list(log_q)), (*values.values(), *log_q.values())

        outputs = self._run_graph(("draw", guide), draws, guide, batch, [], (num_samples, layout))
        if outputs is None:
            return densities.draw(guide, batch, num_samples, layout)
        (names, sites), tensors = outputs
        drawn, log_q = tensors[: len(names)], tensors[len(names) :]
        return dict(zip(names, drawn, strict=True)), dict(zip(sites, log_q, strict=True))

    def log_density(
        self, program: Program, batch: Batch, values: Mapping[str, Tensor], layout: Layout
    ) -> dict[str, Tensor]:
        """Score a model or guide at given latents, without gradients."""
        names = list(values)

        def scores(batch: Batch, latents: list[Tensor]) -> tuple[list[str], Tensors]:
            sites = densities.log_density(program, batch, dict(zip(names, latents, strict=True)), layout)
            return list(sites), tuple(site.detach() for site in sites.values())

        outputs = self._run_graph(("score", program), scores, program, batch, list(values.values()), (names, layout))
        if outputs is None:
            return densities.log_density(program, batch, values, layout)
        return dict(zip(*outputs, strict=True))

    def _run_graph(
        self, key: Any, function: Any, program: Program, batch: Batch, latents: list[Tensor], frozen: Any
    ) -> tuple[Any, Any] | None:
        """Run the graph of a function of a batch and latents.

        Args:
            key: Identity of the graph: the operation and the callable.
            function: Function of (batch, latents) to record. It returns static Python values and tensors.
            program: Model or guide that the function calls.
            batch: Arguments of the program.
            latents: Values of the latents, each (K, B, ...).
            frozen: Hashable or comparable Python values that the graph holds fixed, such as the number of samples.

        Returns:
            (static values, tensors), or None if the call has to run eagerly.
        """
        if key in self._refused:
            return None
        try:
            tensors, build, static = batch.flatten()
        except TypeError:
            self._refuse(key, "an argument of the program is neither a tensor nor hashable")
            return None
        num_tensors = len(tensors)
        signature = (frozen, static, [(tensor.shape, tensor.dtype) for tensor in (*tensors, *latents)])
        if key not in self._graphs:  # one graph for all chunks: it inspects the program's surroundings only once

            def call_with_tensors(*inputs: Tensor) -> Any:
                return function(build(list(inputs[:num_tensors])), list(inputs[num_tensors:]))

            # All results are log-densities, except the latents of `draw`, for which the bound is merely one more.
            graph = Graph(call_with_tensors, program, *batch.non_tensors(), in_nats=slice(None))
            self._graphs[key] = graph, signature
        graph, compiled_signature = self._graphs[key]
        if signature != compiled_signature:
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
        _LOG.warning("Densities are not compiled: %s. Falling back to eager Pyro.", reason)
