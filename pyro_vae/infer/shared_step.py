r"""Loss and gradients of a step of several fits, computed as one graph."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from pyro_vae.infer.joint_adam import step_together
from pyro_vae.infer.member import Member
from pyro_vae.infer.precision import PRECISIONS
from pyro_vae.infer.sharded_svi import ShardedSVI
from pyro_vae.infer.step_result import StepResult
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
        elif any(isinstance(member.fit.svi, ShardedSVI) for member in members):
            self._refuse("their batches are computed in parts")
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
            members: Members that take a step now.
        """
        if self.refused or any(member.record is None for member in members):
            return
        # Comparisons do not change the result of a step, so that results do not depend on when they happen: a fit that
        # resumes counts its calls from 0 again.
        compares = any(member.compares for member in members)
        if compares and not all([member.compare() for member in members if member.compares]):
            return
        try:
            with PRECISIONS[members[0].fit.svi.precision]():
                graph = self._graph_of(members)
                inputs = {self._positions[member]: member.inputs for member in members}
                if compares:
                    graph.check(inputs)
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
        """Give the tensors of each member their own memory, until the next shared step."""
        self._away.clear()
        for member in self._members:  # after an error, a result left over would be used for another step
            member.fit.svi.optim.moved = False
            if member.fit.svi.recorded is not None:
                member.fit.svi.recorded.pending = None
        if self._graph is not None:
            self._graph.release()

    def _graph_of(self, members: Sequence[Member]) -> BatchedGraph:
        """Return the graph that contains the members; build one if there is none."""
        size = self._size_for(len(members))
        stands = (
            self._graph is not None
            and self._graph.size == size
            and all(m in self._positions and self._graph.records[self._positions[m]] is m.record for m in members)
        )
        if not stands:
            self.release()
            self._graph = None
            self._built += 1
            if self._built > _MOST_GRAPHS:
                raise GraphError("the programs change too often")
            numbered = enumerate(self._members if size == len(self._members) else members)
            self._positions = {member: position for position, member in numbered if member in members}
            self._graph = self._build(size)
        assert self._graph is not None
        if any(member in self._away for member in members):
            self.release()
        for member, position in self._positions.items():
            if member not in members and member not in self._away:
                self._graph.leave(position)
                self._away.add(member)
        return self._graph

    def _size_for(self, count: int) -> int:
        """Return the number of positions of a graph for some members: the number of all, halved as often as possible.

        So a graph is rebuilt when half of its positions are unused. The number does not depend on the order in which
        members have stopped, nor on which of them did before the fits were resumed: with another number the compiler
        may round differently.
        """
        size = len(self._members)
        while size // 2 >= count:
            size //= 2
        return size

    def _build(self, size: int) -> BatchedGraph:
        members = {position: member for member, position in self._positions.items()}
        return BatchedGraph(
            {position: member.record for position, member in members.items() if member.record is not None},
            {position: member.streams.generator for position, member in members.items()},
            {position: member.inputs for position, member in members.items()},
            size=size,
            **(self._recorded[0].options | {"compiled": self._compiled}),
        )

    def _compile_each(self, compiled: bool) -> None:
        for step in self._recorded:
            step.set_compiled(compiled)

    def _refuse(self, reason: str) -> None:
        self.refused = True
        self.stop()
        _LOG.warning("The fits do not share their steps: %s. They run one after the other.", reason)
