r"""Parts of a batch: which of them this process computes, and whether their sum is that of the whole batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import pyro
import torch
from torch import Tensor

from pyro_vae import parallel, ranks
from pyro_vae.errors import UserError
from pyro_vae.infer.exchange import check_same_parameters
from pyro_vae.infer.graph_step import Preprocess
from pyro_vae.infer.objectives.objective import Objective
from pyro_vae.infer.parameters import canonical_name, unconstrained_param
from pyro_vae.trace import Batch, Draw, GraphError, Program, RowNoise, Rows, find_draws, global_generator
from pyro_vae.trace.graphs.comparison import agree, without_effects
from pyro_vae.trace.graphs.surroundings import Surroundings
from pyro_vae.trace.isolation import isolated_param_store


class Parts:
    """Parts of the batches of a program and its objective.

    Args:
        model: Callable that defines p(x, z).
        guide: Callable that defines q(z|x).
        objective: Objective to maximize.
        shards: Number of parts of a batch, or None for one part in each process.

    Attributes:
        number: Number of parts in all processes.
        own: Numbers of the parts that this process computes, which are consecutive.

    Raises:
        UserError: If there are more processes than shards.
    """

    def __init__(self, model: Program, guide: Program, objective: Objective, shards: int | None) -> None:
        parallel.on_first(lambda: _check_number(shards))  # raised by all processes, and printed by one
        self.model, self.guide, self.objective, self.shards = model, guide, objective, shards
        self.number = ranks.size() if shards is None else shards
        self.own = range(*Rows.split(self.number, ranks.rank(), ranks.size())[:2])

    def rows(self, total: int) -> list[Rows]:
        """Return the rows of the parts of this process, for a batch of `total` images."""
        return [Rows.split(total, part, self.number) for part in self.own]

    def find_draws(self, whole: Batch, preprocess: Preprocess | None) -> list[Draw]:
        """Return the random operations of a step.

        Raises:
            UserError: If they depend on the images in a way that parts cannot repeat.
        """
        draws = find_draws(lambda batch: self._bounds(batch, preprocess), whole, lambda: self._isolated(whole))
        if self.shards is not None and any(draw.rejects for draw in draws):
            # The number of proposals of an image depends on the images before it, which other parts contain.
            raise UserError(
                "The program draws by rejection, e.g. from a gamma distribution, which several parts of a batch cannot "
                "repeat: leave out shards (--deterministic-shards)."
            )
        return draws

    def check(
        self,
        whole: Batch,
        preprocess: Preprocess | None,
        draws: Sequence[Draw],
        params: Mapping[str, Tensor],
        tolerance: float,
    ) -> None:
        """Check for a few images of a batch that the sum over their parts is that of one process.

        Args:
            whole: The batch.
            preprocess: As for `SVI.step`.
            draws: Result of `find_draws`.
            params: Parameters by name.
            tolerance: Relative difference attributed to rounding.

        Raises:
            UserError: If it is not, or the processes have different batches or weights.
        """
        few = whole[: 2 * self.number]
        self._check_same(whole, params)
        with self._isolated(whole):
            buffers = Surroundings([self.model, self.guide, self.objective]).buffers()
            before = [buffer.clone() for buffer in buffers]
            loss, gradients = self._loss_and_gradients(few, preprocess)
            after = [buffer.clone() for buffer in buffers]
            # Several parts in one process would change buffers several times in a step.
            if self.shards is not None and not all(map(torch.equal, after, before)):
                raise UserError(
                    "The program changes buffers in a step, which the parts of a batch would do repeatedly: leave out "
                    "shards (--deterministic-shards)."
                )
        expected = [loss, *gradients.values()]
        sizes = [value.numel() for value in expected]
        flat = torch.zeros(sum(sizes), dtype=torch.float64, device=loss.device)
        shapes, results, same_buffers = [_shapes(gradients)], [], True
        for rows in self.rows(len(few)):
            with self._isolated(whole), RowNoise(draws, rows, ranks.gather):
                own_loss, own = self._loss_and_gradients(rows.of(few), preprocess)
                same_buffers &= all(map(torch.equal, buffers, after))
            shapes.append(_shapes(own))
            results += [[own_loss, *own.values()]] if len(rows) else []
        check_same_parameters([each for every in ranks.gather(shapes) for each in every])
        for values in results:
            flat += torch.cat([value.double().flatten() for value in values])
        ranks.sum_flat(flat)
        sums = flat.split(sizes)
        if not agree([(a, b.view(a.shape)) for a, b in zip(expected, sums, strict=True)], tolerance):
            raise UserError(
                f"The objective of {len(few)} images is {-float(expected[0]):.6g} nats, and the sum over their parts "
                f"{-float(sums[0]):.6g}, or their gradients differ: the program or the objective couples the images "
                "of a batch, e.g. by batch normalization, which several processes cannot compute. Use one process"
                + ("." if self.shards is None else ", and leave out shards (--deterministic-shards).")
            )
        if not all(ranks.gather(same_buffers)):  # a counter has the same value for any images
            raise UserError(
                "The program computes buffers from the images of a batch, which would differ between processes: use "
                "one process."
            )

    def _bounds(self, batch: Batch, preprocess: Preprocess | None) -> tuple[Tensor, Tensor]:
        return self.objective.bounds(self.model, self.guide, observed(batch, preprocess))

    def _loss_and_gradients(self, batch: Batch, preprocess: Preprocess | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, and the gradients of all parameters in the order of their names, 0 if there is none."""
        loss = -self._bounds(batch, preprocess)[0].sum()
        params = {canonical_name(name): unconstrained_param(name) for name in pyro.get_param_store()}
        trained = {name: params[name] for name in sorted(params) if params[name].requires_grad}
        gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        found = zip(trained.items(), gradients, strict=True)
        return loss.detach(), {name: torch.zeros_like(p) if g is None else g for (name, p), g in found}

    def _check_same(self, whole: Batch, params: Mapping[str, Tensor]) -> None:
        """Raise if the processes have different batches, weights or random states."""
        states = [global_generator(torch.device(device)).get_state() for device in ("cpu", whole.device)]
        weights = [p.detach() for p in params.values()]
        facts = {"batches": whole.flatten()[0], "weights": weights, "random states": states}
        every = ranks.gather({what: repr([float(t.double().sum()) for t in values]) for what, values in facts.items()})
        for what in facts:
            if len({own[what] for own in every}) > 1:
                raise UserError(f"The {what} of the processes differ: use the same seed and data in each.")

    @contextmanager
    def _isolated(self, batch: Batch) -> Iterator[None]:
        """Undo all side effects of the program, and restore the random generators."""
        try:
            with ExitStack() as stack:
                stack.enter_context(isolated_param_store())
                surroundings = Surroundings([self.model, self.guide, self.objective])
                stack.enter_context(without_effects(batch.x, surroundings))
                stack.enter_context(torch.enable_grad())
                yield
        except (GraphError, OverflowError) as error:
            raise UserError(f"The program cannot be trained in several processes: {error}. Use one process.") from error


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def observed(batch: Batch, preprocess: Preprocess | None) -> Batch:
    """Return the arguments of the program for a batch."""
    return batch if preprocess is None else Batch.of(batch.call(preprocess))


def _check_number(shards: int | None) -> None:
    if shards is not None and shards < ranks.size():
        raise UserError(
            f"{ranks.size()} processes cannot share {shards} shards (--deterministic-shards): "
            "start at most one process for each."
        )
