r"""Training steps whose batch is shared by several processes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_vae import ranks
from pyro_vae.errors import UserError
from pyro_vae.infer.exchange import Exchange, Sums, check_same_parameters
from pyro_vae.infer.graph_step import Preprocess
from pyro_vae.infer.objectives.objective import Objective
from pyro_vae.infer.parameters import canonical_name, unconstrained_param
from pyro_vae.infer.processes import ManyProcesses
from pyro_vae.infer.step_result import StepResult
from pyro_vae.infer.svi import SVI
from pyro_vae.trace import Batch, Draw, GraphError, RowNoise, Rows, ShardedGraph, find_draws
from pyro_vae.trace.graphs.comparison import TOLERANCE, agree
from pyro_vae.trace.graphs.effects import undo_effects
from pyro_vae.trace.graphs.surroundings import Surroundings
from pyro_vae.trace.isolation import fork_rng, isolated_param_store

_LOG = logging.getLogger("pyro_vae")

# The draws of the program are found, and its sums compared, before the first step that a process takes, before steps 1,
# 2, 4, 8, ... and every thousandth.
_CHECKED_EVERY = 1000


class ShardedSVI(SVI):
    """`SVI` in each of several processes (`ranks`), which compute disjoint rows of the same batches.

    Losses and gradients are added over the processes before the optimizer's step, so that all of them keep the same
    parameters. The noise of an image is that of a single process, so that results do not depend on the number of
    processes, up to rounding. All processes must be given the same batches and start from the same random seed.

    The objective of a batch must be the sum over its images. The first step, steps 1, 2, 4, 8, ... and every thousandth
    compare the sum over processes with the whole, for a few images of the batch. A program that couples images, e.g. by
    batch normalization, and an objective that does, e.g. `BetaTCVAE`, are rejected there.

    Args:
        *args: See `SVI`; the loss must be an `Objective`.
        **kwargs: See `SVI`.

    Raises:
        ValueError: As `SVI`, or if the loss is no `Objective`. In a step, if a program or objective couples images, or
            the processes have different batches or weights.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.objective, Objective):
            kind = type(self.objective).__name__
            raise UserError(f"Several processes can share the steps of an objective of pyro_vae, not of {kind}.")
        self._compiled = self.recorded is not None and self.recorded.compiled
        if self.recorded is not None:
            self.recorded.set_compiled(False)  # the graph without random operations is compiled instead
        self.processes: ManyProcesses = ManyProcesses()
        self._exchange = Exchange()
        self._rows = Rows(0, 0, 0)
        self._draws: list[Draw] | None = None  # unknown before the first step, also of a fit that is resumed
        self._graph: ShardedGraph | None = None
        self._refused = False

    def _objective_step(self, preprocess: Preprocess | None, *args: Any, **kwargs: Any) -> Tensor:
        """Take a step on the rows of this process."""
        assert isinstance(self.objective, Objective)
        self.objective.set_step(self.steps)
        whole = Batch.from_call(*args, **kwargs)
        self._rows = Rows.split(len(whole), ranks.rank(), ranks.size())
        batch = self._rows.of(whole)
        draws = self._draws
        if draws is None or self.steps & (self.steps - 1) == 0 or self.steps % _CHECKED_EVERY == 0:
            draws = self._check(whole, preprocess)
        if len(self._rows) and self._compute_recorded(preprocess, batch, draws):
            step = self._replay(batch)
            assert step is not None
            loss, self.elbo = step
            return loss
        with RowNoise(draws, self._rows, ranks.gather):
            return self._eager_step(batch if preprocess is None else Batch.of(batch.call(preprocess)))

    def _compute_recorded(self, preprocess: Preprocess | None, batch: Batch, draws: list[Draw]) -> bool:
        """Compute and exchange a step with the recorded graph, for `_replay`; return False if it has to run eagerly."""
        recorded = self.recorded
        if recorded is None or self._refused or not recorded.accepts(preprocess, batch):
            return False
        if recorded.comparisons.due() and not recorded.compare(batch):
            return False
        found = recorded.record(batch)
        if found is None:
            return False
        record, inputs = found
        try:
            if self._graph is None or self._graph.record is not record or self._graph.draws is not draws:
                options = recorded.options | {"compiled": self._compiled}
                self._graph = ShardedGraph(record, inputs, draws, self._rows, **options)
            result = StepResult.of(record.static, self._graph(inputs))
        except GraphError as error:
            self._refused = True
            _LOG.warning("The step is not recorded: %s. Every step runs eagerly.", error)
            return False
        self._add_new_params(result.stored)  # before the exchange of their gradients
        sums = self._sum(result.loss, result.elbo, result.gradients)
        recorded.pending = StepResult(sums.loss, sums.elbo, sums.finite, sums.gradients, result.stored)
        return True

    def _combine(self, loss: Tensor) -> Tensor:
        """Replace loss, ELBO and gradients by their sums over all processes."""
        params = self.optim.params
        assert self.elbo is not None
        gradients = {name: p.grad for name, p in params.items() if p.grad is not None}
        loss, self.elbo, _, sums, _ = self._sum(loss, self.elbo, gradients)
        for name, p in params.items():
            p.grad = sums.get(name)
        return loss

    def _sum(self, loss: Tensor, elbo: Tensor, gradients: dict[str, Tensor]) -> Sums:
        counts = len(self._rows) > 0
        stop = self.processes.should_stop()
        sums = self._exchange(loss, elbo, self.optim.params, gradients, counts=counts, stop=stop)
        self.processes.stops = sums.stops
        return sums

    def _check(self, whole: Batch, preprocess: Preprocess | None) -> list[Draw]:
        """Find the draws of a step, and check for a few images that their sum over processes is that of one process.

        Returns:
            The draws; the same list as before if they have not changed, so that a graph is kept.

        Raises:
            UserError: If it is not, or the processes have different batches or weights.
        """
        few = whole[: 2 * ranks.size()]
        self._check_same(whole)
        draws = find_draws(lambda batch: self._bounds(batch, preprocess), whole, lambda: self._isolated(whole))
        if self._draws != draws:
            self._draws = draws
        rows = Rows.split(len(few), ranks.rank(), ranks.size())
        with self._isolated(whole):
            expected = self._loss_and_gradients(few, preprocess)
        with self._isolated(whole), RowNoise(draws, rows, ranks.gather):
            own = self._loss_and_gradients(rows.of(few), preprocess)
        shapes = [{name: tuple(g.shape) for name, g in gradients.items()} for _, gradients in (expected, own)]
        check_same_parameters([each for pair in ranks.gather(shapes) for each in pair])
        wholes, parts = ([loss, *gradients.values()] for loss, gradients in (expected, own))
        flat = torch.cat([value.double().flatten() for value in parts])
        flat *= float(len(rows) > 0)
        ranks.sum_flat(flat)
        sums = flat.split([value.numel() for value in parts])
        pairs = [(a, b.view(a.shape)) for a, b in zip(wholes, sums, strict=True)]
        if not agree(pairs, self.recorded.options.get("tolerance", TOLERANCE) if self.recorded else TOLERANCE):
            raise UserError(
                f"The objective of {len(few)} images is {-float(wholes[0]):.6g} nats, and the sum over their parts "
                f"{-float(sums[0]):.6g}, or their gradients differ: the program or the objective couples the images "
                "of a batch, e.g. by batch normalization, which several processes cannot compute. Use one process."
            )
        return self._draws

    def _bounds(self, batch: Batch, preprocess: Preprocess | None) -> tuple[Tensor, Tensor]:
        assert isinstance(self.objective, Objective)
        inputs = batch if preprocess is None else Batch.of(batch.call(preprocess))
        return self.objective.bounds(self.model, self.guide, inputs)

    def _loss_and_gradients(self, batch: Batch, preprocess: Preprocess | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, and the gradients of all parameters in the order of their names, 0 if there is none."""
        loss = -self._bounds(batch, preprocess)[0].sum()
        params = {canonical_name(name): unconstrained_param(name) for name in pyro.get_param_store()}
        trained = {name: params[name] for name in sorted(params) if params[name].requires_grad}
        gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        found = zip(trained.items(), gradients, strict=True)
        return loss.detach(), {name: torch.zeros_like(p) if g is None else g for (name, p), g in found}

    def _check_same(self, whole: Batch) -> None:
        """Raise if the processes have different batches, weights or random states."""
        tensors = whole.flatten()[0]
        sums = [[float(t.double().sum()) for t in tensors]]
        sums.append([float(p.detach().double().sum()) for p in self.optim.params.values()])
        sums.append([float(torch.get_rng_state().double().sum())])
        for what, values in zip(
            ("batches", "weights", "random states"), zip(*ranks.gather(sums), strict=True), strict=True
        ):
            if any(repr(value) != repr(values[0]) for value in values):
                raise UserError(
                    f"The {what} of the processes differ: call pyro.set_rng_seed with the same seed in each."
                )

    @contextmanager
    def _isolated(self, batch: Batch) -> Iterator[None]:
        """Undo all side effects of the program, and restore the random generators."""
        try:
            with ExitStack() as stack:
                stack.enter_context(fork_rng(batch.x))
                stack.enter_context(isolated_param_store())
                stack.enter_context(pyro.validation_enabled(False))
                stack.enter_context(undo_effects(Surroundings([self.model, self.guide, self.objective])))
                yield
        except (GraphError, OverflowError) as error:
            raise UserError(f"The program cannot be trained in several processes: {error}. Use one process.") from error
