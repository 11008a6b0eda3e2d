r"""Training steps whose batch is computed in parts, in one or several processes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

from torch import Tensor

from pyro_vae import ranks
from pyro_vae.errors import UserError
from pyro_vae.infer.comparisons import Comparisons
from pyro_vae.infer.coupling import CouplingCheck
from pyro_vae.infer.exchange import Exchange, Part
from pyro_vae.infer.graph_step import Preprocess
from pyro_vae.infer.isolated_step import IsolatedStep, observed
from pyro_vae.infer.objectives.objective import Objective
from pyro_vae.infer.parameters import State
from pyro_vae.infer.parts import Parts
from pyro_vae.infer.processes import ManyProcesses
from pyro_vae.infer.step_result import StepResult
from pyro_vae.infer.streams import rng_state, set_rng_state
from pyro_vae.infer.svi import SVI
from pyro_vae.trace import Batch, Data, Draw, GraphError, Record, RowNoise, Rows, ShardedGraph, global_generator
from pyro_vae.trace.graphs.comparison import TOLERANCE
from pyro_vae.trace.isolation import fork_rng

_LOG = logging.getLogger("pyro_vae")

_Inputs = dict[int, tuple[Tensor, ...]]  # of the record of a step, by the place of the part in this process


class ShardedSVI(SVI):
    """`SVI` in each of several processes (`ranks`), which compute disjoint rows of the same batches.

    Losses and gradients are added over the processes before the optimizer's step, so that all of them keep the same
    parameters. The noise of an image is that of a single process, so that results do not depend on the number of
    processes, up to rounding. All processes must be given the same batches and start from the same random seed.

    With `shards`, a batch is always computed in this number of parts, with the same shapes in any number of processes,
    and their results are added in the same order. Weights and losses then do not depend on the number of processes to
    the bit, if each has the same number of threads and the same kind of device.

    The objective of a batch must be the sum over its images. The first step with a batch of some size, and the steps
    that `Comparisons` schedules, compare the sum over parts with the whole (`CouplingCheck`). A program that couples
    images, e.g. by batch normalization, and an objective that does, e.g. `BetaTCVAE`, are rejected there.

    Args:
        *args: See `SVI`; the loss must be an `Objective`.
        shards: Number of parts of a batch. If None, each process computes one part.
        **kwargs: See `SVI`.

    Raises:
        ValueError: As `SVI`, or if the loss is no `Objective`, or there are more processes than shards. In a step, if a
            program or objective couples images, or the processes have different batches or weights; with `shards`, also
            if the program draws by rejection or changes buffers.
    """

    def __init__(self, *args: Any, shards: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.objective, Objective):
            kind = type(self.objective).__name__
            raise UserError(f"Several processes can share the steps of an objective of pyro_vae, not of {kind}.")
        self._compiled = self.recorded is not None and self.recorded.compiled
        if self.recorded is not None:
            self.recorded.set_compiled(False)  # the graph without random operations is compiled instead
        self.processes: ManyProcesses = ManyProcesses()
        self._parts, self._exchange = Parts(shards), Exchange(shards)
        self._isolated = IsolatedStep(self.model, self.guide, self.objective)
        tolerance = self.recorded.options.get("tolerance", TOLERANCE) if self.recorded else TOLERANCE
        self._check = CouplingCheck(self._isolated, self._parts, tolerance)
        self._comparisons, self._sizes = Comparisons(), set[int]()  # sizes of the batches that have been compared
        self._draws: list[Draw] | None = None  # unknown before the first step, and after a state has been loaded
        self._graphs: dict[int, ShardedGraph] = {}  # by the id of the record, which it holds
        self._refused = False

    def load_state_dict(self, state: State, batch: Data) -> None:
        """Restore a `state_dict`, also one of another number of processes; see `SVI.load_state_dict`."""
        super().load_state_dict(state, batch)
        self._draws, self._comparisons, self._sizes = None, Comparisons(), set()

    def _objective_step(self, preprocess: Preprocess | None, *args: Any, **kwargs: Any) -> Tensor:
        """Take a step, of which this process computes its parts."""
        assert isinstance(self.objective, Objective)
        self.objective.set_step(self.steps)
        whole = Batch.from_call(*args, **kwargs)
        if self._draws is None and whole.device.type == "cuda":
            # A state has been saved by the first process, and restores only the generator of the GPU of that process.
            generator = global_generator(whole.device)
            generator.set_state(ranks.broadcast(generator.get_state()))
        if self._draws is None or len(whole) not in self._sizes or self._comparisons.due():
            self._comparisons.note()
            self._sizes.add(len(whole))
            self._check(whole, preprocess, self._find_draws(whole, preprocess), self.optim.params)
        self._comparisons.calls += 1
        if self._parts.shards is not None and not self._stored:
            self._register(whole, preprocess)
        parts = self._compute(whole, preprocess)
        sums = self._exchange(parts, self.optim.params, stop=self.processes.should_stop())
        self.processes.stops, self.elbo = sums.stops, sums.elbo
        self._gate.update(sums.finite, sums.gradients)
        return sums.loss

    def _find_draws(self, whole: Batch, preprocess: Preprocess | None) -> list[Draw]:
        """Find and keep the random operations of a step."""
        draws = self._isolated.find_draws(whole, preprocess)
        if draws != self._draws:  # graphs are kept while these stay the same
            self._draws, self._graphs = draws, {}
        return draws

    def _register(self, whole: Batch, preprocess: Preprocess | None) -> None:
        """Register the parameters in the same way in all processes, before the parts of the first step.

        Otherwise only the first part in each process would draw initial values, and so have other noise.
        """
        before, state = self._draws, rng_state()
        self._eager_gradients(observed(whole[:2], preprocess))
        self._take_gradients()
        if self._find_draws(whole, preprocess) == before:  # no initial value is random: keep the noise of one process
            set_rng_state(state)

    def _compute(self, whole: Batch, preprocess: Preprocess | None) -> list[Part]:
        """Compute the parts of this process. The generators advance once, as for the whole batch."""
        rows = self._parts.rows(len(whole))
        replayed = self._recorded_inputs(whole, rows, preprocess)
        taken = {place for _, inputs in replayed for place in inputs}
        eager = [place for place in range(len(rows)) if place not in taken]
        runs: list[Callable[[], dict[int, Part]]]
        runs = [partial(self._run, whole, rows, place, preprocess) for place in eager]
        runs += [partial(self._replay_parts, graph, inputs, rows) for graph, inputs in replayed]
        results: dict[int, Part] = {}
        for index, run in enumerate(runs):
            # Every run draws the noise of the whole batch, from the same state of the generators.
            with fork_rng(whole.x) if index < len(runs) - 1 else nullcontext():
                results |= run()
        return [results[place] for place in range(len(rows))]

    def _run(self, whole: Batch, rows: Sequence[Rows], place: int, preprocess: Preprocess | None) -> dict[int, Part]:
        """Compute a part by running the program."""
        assert self._draws is not None
        with RowNoise(self._draws, rows[place], ranks.gather):
            loss = self._eager_gradients(observed(rows[place].of(whole), preprocess))
        assert self.elbo is not None
        return {place: Part(loss, self.elbo.detach(), self._take_gradients(), len(rows[place]) > 0)}

    def _take_gradients(self) -> dict[str, Tensor]:
        """Return the gradients of the last backward pass, and clear them."""
        gradients = {}
        for name, p in self.optim.params.items():
            if p.grad is not None:
                gradients[name], p.grad = p.grad, None
        return gradients

    def _recorded_inputs(
        self, whole: Batch, rows: Sequence[Rows], preprocess: Preprocess | None
    ) -> list[tuple[ShardedGraph, _Inputs]]:
        """Return the graphs that compute parts of this step, with their inputs; the other parts run eagerly."""
        recorded = self.recorded
        if recorded is None or self._refused:
            return []
        if recorded.sizes is None:
            # The size that is recorded. With shards it is that of the largest part, the same in all processes, so that
            # the same parts run eagerly in any number of processes: a compiled graph has other rounding errors.
            first = (
                rows[0]
                if self._parts.shards is None
                else Rows.split(len(whole), self._parts.number - 1, self._parts.number)
            )
            if len(first):
                recorded.accepts(preprocess, first.of(whole))
            return []
        batches = {place: part.of(whole) for place, part in enumerate(rows) if len(part)}
        batches = {place: batch for place, batch in batches.items() if recorded.accepts(preprocess, batch)}
        if not batches or (recorded.comparisons.due() and not recorded.compare(next(iter(batches.values())))):
            return []
        found: dict[int, tuple[Record, _Inputs]] = {}
        for place, batch in batches.items():
            pair = recorded.record(batch)
            if pair is None:
                return []
            record, inputs = pair
            found.setdefault(id(record), (record, {}))[1][place] = inputs
        try:
            graphs = [
                (self._graph_of(record, next(iter(inputs.values()))), inputs) for record, inputs in found.values()
            ]
        except GraphError as error:
            self._refused = True
            _LOG.warning("The step is not recorded: %s. Every step runs eagerly.", error)
            return []
        recorded.comparisons.calls += 1
        return graphs

    def _graph_of(self, record: Record, inputs: tuple[Tensor, ...]) -> ShardedGraph:
        """Return the graph of a record; build it if there is none."""
        assert self.recorded is not None
        assert self._draws is not None
        if id(record) not in self._graphs:
            options = self.recorded.options | {"compiled": self._compiled}
            self._graphs[id(record)] = ShardedGraph(record, inputs, self._draws, **options)
        return self._graphs[id(record)]

    def _replay_parts(self, graph: ShardedGraph, inputs: _Inputs, rows: Sequence[Rows]) -> dict[int, Part]:
        """Compute parts with their graph."""
        outputs = graph([(rows[place], tensors) for place, tensors in inputs.items()])
        parts = {}
        for place, output in zip(inputs, outputs, strict=True):
            result = StepResult.of(graph.record.static, output)
            self._add_new_params(result.stored)
            parts[place] = Part(result.loss, result.elbo, result.gradients, True)
        return parts
