r"""Take many steps with one launch: on a CUDA device, the steps of many batches are captured as one CUDA graph.

Between two steps the host writes the index of the step, the learning rate, values of the objective such as a beta that
rises, and the next batch. For the steps of one launch it computes these values first, one table for each, and the graph
reads them row by row. Losses are summed on the device, in the order of the steps. At the end of a launch every tensor
has the value that it has after the same steps one by one, so that a state saved there does not depend on how the steps
before or after it are launched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from pyro_vae.infer import schedules
from pyro_vae.infer.cuda_graph import CUDAGraphCall
from pyro_vae.infer.epochs import EpochProgress
from pyro_vae.infer.graph_step import Preprocess
from pyro_vae.infer.objectives.objective import Objective
from pyro_vae.infer.precision import PRECISIONS
from pyro_vae.infer.svi import SVI
from pyro_vae.infer.tables import Tables, UnknownValue
from pyro_vae.trace import Batch

STEPS = 20  # of a launch: a signal waits for them, and an epoch takes its last steps one by one
_MOST_BYTES = 2**26  # of the batches of a launch, which are on the device at the same time


class Launches:
    """Groups the steps of a driver into launches, with the same numbers as one by one.

    Many steps are launched at once only if a single step has been captured and nothing in between needs the host: no
    comparison of the graph with the program, no batch of another size or form, no change of a Python number.

    Args:
        svi: Driver that takes the steps.
    """

    def __init__(self, svi: SVI) -> None:
        self.svi = svi
        self._graph_call = CUDAGraphCall(self._steps, self._key, part=lambda: self.svi.graph_call)
        self._build: Callable[[list[Tensor]], Batch] | None = None
        self._num_tensors = 0  # of a batch
        self._tables: Tables | None = None

    def groups(
        self, batches: Iterator[Batch], progress: EpochProgress, preprocess: Preprocess | None, *, many: bool
    ) -> Iterator[list[Batch]]:
        """Yield groups of one or `STEPS` batches, each of which `take` has to take before the next one is asked for.

        Args:
            batches: The batches of an epoch.
            progress: Progress of the epoch.
            preprocess: As for `SVI.step`.
            many: Whether batches may be fetched before the steps on those before them, and several steps be taken with
                nothing in between.
        """
        for batch in batches:
            group = [batch]
            # The first step of an epoch gives the sums their dtype.
            if many and progress.batches and self._may_launch(batch):
                group += islice(batches, STEPS - 1)
            if len(group) == STEPS > 1 and self._prepare(group, preprocess):
                yield group
            else:
                yield from ([single] for single in group)

    def take(self, group: Sequence[Batch], progress: EpochProgress, preprocess: Preprocess | None) -> None:
        """Take the steps of a group of batches, and update the progress of the epoch."""
        if len(group) > 1:
            self._launch(group, progress)
        else:
            loss = self.svi.step(group[0], preprocess=preprocess)
            progress.add(loss, self.svi.elbo, len(group[0]))

    def _may_launch(self, batch: Batch) -> bool:
        """Return whether the next steps may be launched at once, as far as one batch tells."""
        recorded, call = self.svi.recorded, self.svi.graph_call
        if recorded is None or call is None or call.graph is None or recorded.comparisons.due(STEPS):
            return False
        return STEPS * sum(tensor.nbytes for tensor in batch.flatten()[0]) <= _MOST_BYTES

    def _prepare(self, group: list[Batch], preprocess: Preprocess | None) -> bool:
        """Return whether the steps of these batches only replay the captured step; compute their tables if so."""
        svi, call, objective = self.svi, self.svi.graph_call, self.svi.objective
        assert svi.recorded and call and isinstance(objective, Objective)  # noqa: PT018 -- for the type checker
        if not all(svi.recorded.accepts(preprocess, batch) and batch.device == group[0].device for batch in group):
            return False
        tensors, self._build, _ = group[0].flatten()
        self._num_tensors = len(tensors)
        # Where the method is not overridden, it does nothing, and one call stands for all.
        overridden = getattr(objective.set_step, "__func__", None) is not Objective.set_step
        steps = range(svi.steps, svi.steps + (len(group) if overridden else 1))
        try:
            self._tables = Tables(objective.set_step, steps, lambda: call.is_captured(*tensors))
        except UnknownValue:
            return False
        return True

    def _launch(self, group: Sequence[Batch], progress: EpochProgress) -> None:
        """Take the steps of a group that has just been prepared at once."""
        svi, optim, recorded, tables = self.svi, self.svi.optim, self.svi.recorded, self._tables
        assert recorded and tables and optim.optimizer  # noqa: PT018 -- for the type checker
        svi._gate.step.fill_(svi.steps)
        rates = []
        if optim.scheduler is None:
            optim.step_schedule()  # remembers the rate of these steps
        else:
            dtype = optim.optimizer.param_groups[0]["lr"].dtype
            rates = [torch.tensor(schedules.skip(optim.scheduler, len(group)), dtype=dtype, device="cpu")]
            optim.learning_rate = rates[0][-2]  # the last one is that of the next step
        stacks = [torch.stack(rows) for rows in zip(*(batch.flatten()[0] for batch in group), strict=True)]
        calls = recorded.comparisons.calls
        with PRECISIONS[svi.precision]():
            outputs = self._graph_call(*stacks, progress.objective, progress.elbo, *tables.rows, *rates)
        assert outputs is not None
        progress.objective, progress.elbo, svi.elbo = outputs
        progress.batches += len(group)
        progress.images += sum(map(len, group))
        recorded.comparisons.calls = calls + len(group)
        svi.steps += len(group)

    def _steps(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Take the steps of a launch and return the sums and the last ELBO; this method, with its loop, is captured."""
        svi, tables, build = self.svi, self._tables, self._build
        assert tables and build and svi.optim.optimizer  # noqa: PT018 -- for the type checker
        stacks, (objective, elbo, *rest) = inputs[: self._num_tensors], inputs[self._num_tensors :]
        rows, rates = rest[: len(tables.targets)], rest[len(tables.targets) :]
        sums = EpochProgress(objective=objective, elbo=elbo)
        for index in range(len(stacks[0])):
            if index:
                svi._gate.step.add_(1)
            for target, values in zip(tables.targets, rows, strict=True):
                target.copy_(values[index])
            batch = build([stack[index] for stack in stacks])
            result = svi._replay(batch)
            assert result is not None  # a step with this key has been captured
            loss, last = result
            sums.add(loss, last, len(batch))
            for values in rates:
                svi.optim.optimizer.param_groups[0]["lr"].copy_(values[index])
        return sums.objective, sums.elbo, last

    def _key(self, *inputs: Tensor) -> Any:
        """Return the graph of a single step, which stands for all that a step depends on, and what is added here."""
        assert self.svi.graph_call and self._tables  # noqa: PT018 -- for the type checker
        return self.svi.graph_call.graph, self._tables.key, [(tensor.shape, tensor.dtype) for tensor in inputs]
