r"""Loss and gradients of a step of several fits, computed as one graph."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from pyro_vae.infer.graph_step import StepResult
from pyro_vae.infer.joint_adam import step_together
from pyro_vae.infer.member import Member
from pyro_vae.infer.precision import PRECISIONS
from pyro_vae.trace import BatchedGraph, GraphError

_LOG = logging.getLogger("pyro_vae")

# Graphs that are built where programs change between steps; those that change more often would mostly compile.
_MOST_GRAPHS = 20


class SharedStep:
    """The batched step of several fits whose records differ only in the values of tensors.

    Args:
        members: The fits. Only the batched graph is compiled, if their execution is ``"compiled"``.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.refused = False
        self._members = list(members)
        self._graph: BatchedGraph | None = None
        self._positions: dict[Member, int] = {}  # of the members in the graph
        self._away: set[Member] = set()
        self._built = 0
        steps = [member.fit.svi.recorded for member in members]
        self._recorded = [step for step in steps if step is not None]
        self._compiled = bool(self._recorded) and self._recorded[0].compiled
        if len(self._recorded) < len(members):
            self._refuse("execution is None")
        elif len({(m.fit.svi.precision, step.compiled) for m, step in zip(members, self._recorded, strict=True)}) > 1:
            self._refuse("execution or precision differ")

    def start(self) -> None:
        """Compile only the batched graph."""
        if not self.refused:
            self._compile_each(False)

    def stop(self) -> None:
        """Restore the execution that the members were built with."""
        self.release()
        self._graph = None
        self._compile_each(self._compiled)

    def compute(self, members: Sequence[Member]) -> None:
        """Compute the next step of some members if all of them replay it; otherwise each computes its own.

        Args:
            members: Members that take a step now. The others may not return before `release`.
        """
        if self.refused or any(member.record is None for member in members):
            return
        compares = any(member.compares for member in members)
        if compares and self._graph is None:
            return
        try:
            with PRECISIONS[members[0].fit.svi.precision]():
                graph = self._graph_of(members)
                inputs = {self._positions[member]: member.inputs for member in members}
                if compares:
                    graph.check(inputs)
                    return
                results = graph(inputs)
        except GraphError as error:
            self._refuse(str(error))
            return
        steps = []
        for member, result in zip(members, results.values(), strict=True):
            recorded, record = member.fit.svi.recorded, member.record
            assert recorded is not None and record is not None  # noqa: PT018 -- for the type checker
            recorded.pending = StepResult.of(record.static, result)
            steps.append((member.fit.svi, recorded.pending))
        step_together(steps)

    def release(self) -> None:
        """Give the tensors of each member their own memory, as at the end of an epoch."""
        self._away.clear()
        for member in self._members:  # after an error, a result left over would be used for another step
            member.fit.svi.optim.moved = False
            if member.fit.svi.recorded is not None:
                member.fit.svi.recorded.pending = None
        if self._graph is not None:
            self._graph.release()

    def _graph_of(self, members: Sequence[Member]) -> BatchedGraph:
        """Return the graph that contains the members; build one if there is none."""
        stands = (
            self._graph is not None
            and all(m in self._positions and self._graph.records[self._positions[m]] is m.record for m in members)
            and not any(m in self._away for m in members)
            and 2 * len(members) > len(self._positions)  # or it would mostly compute what nobody reads
        )
        if not stands:
            self.release()
            self._graph = None
            self._built += 1
            if self._built > _MOST_GRAPHS:
                raise GraphError("the programs change too often")
            self._graph = self._build(members)
            self._positions = {member: position for position, member in enumerate(members)}
        assert self._graph is not None
        for member, position in self._positions.items():
            if member not in members and member not in self._away:
                self._graph.leave(position)
                self._away.add(member)
        return self._graph

    def _build(self, members: Sequence[Member]) -> BatchedGraph:
        records = [member.record for member in members if member.record is not None]
        return BatchedGraph(
            records,
            [member.streams.generator for member in members],
            {position: member.inputs for position, member in enumerate(members)},
            **(self._recorded[0].options | {"compiled": self._compiled}),
        )

    def _compile_each(self, compiled: bool) -> None:
        for step in self._recorded:
            step.set_compiled(compiled)

    def _refuse(self, reason: str) -> None:
        self.refused = True
        self.stop()
        _LOG.warning("The fits do not share their steps: %s. They run one after the other.", reason)
