r"""A step of a program without its update and without side effects, from which others learn how the program behaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.infer.graph_step import Preprocess
from pyro_vae.infer.objectives.objective import Objective
from pyro_vae.infer.parameters import canonical_name, unconstrained_param
from pyro_vae.trace import Batch, Draw, GraphError, Program, find_draws
from pyro_vae.trace.graphs.comparison import without_effects
from pyro_vae.trace.graphs.surroundings import Surroundings
from pyro_vae.trace.isolation import isolated_param_store


class Results(NamedTuple):
    """Results of a step for some images.

    Attributes:
        loss: Loss summed over the images, in nats.
        gradients: Gradients of all parameters in the order of their names, 0 if there is none.
        before: Buffers of the program before the step.
        after: The same buffers after the step.
    """

    loss: Tensor
    gradients: dict[str, Tensor]
    before: list[Tensor]
    after: list[Tensor]


class IsolatedStep:
    """Steps of a program and its objective that change neither parameters nor buffers nor random generators.

    Args:
        model: Callable that defines p(x, z).
        guide: Callable that defines q(z|x).
        objective: Objective to maximize.
    """

    def __init__(self, model: Program, guide: Program, objective: Objective) -> None:
        self.model, self.guide, self.objective = model, guide, objective

    def __call__(
        self,
        batch: Batch,
        preprocess: Preprocess | None,
        noise: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> Results:
        """Compute a step.

        Args:
            batch: The images.
            preprocess: As for `SVI.step`.
            noise: Returns a context in which the program runs.

        Raises:
            UserError: If the program has side effects that cannot be undone.
        """
        with self._isolated(batch), noise():
            buffers = Surroundings([self.model, self.guide, self.objective]).buffers()
            before = [buffer.clone() for buffer in buffers]
            loss = -self._bounds(batch, preprocess)[0].sum()
            params = {canonical_name(name): unconstrained_param(name) for name in pyro.get_param_store()}
            trained = {name: params[name] for name in sorted(params) if params[name].requires_grad}
            found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
            gradients = {
                name: torch.zeros_like(p) if gradient is None else gradient
                for (name, p), gradient in zip(trained.items(), found, strict=True)
            }
            return Results(loss.detach(), gradients, before, [buffer.clone() for buffer in buffers])

    def find_draws(self, batch: Batch, preprocess: Preprocess | None) -> list[Draw]:
        """Return the random operations of a step.

        Raises:
            UserError: If they depend on the images in a way that parts cannot repeat.
        """
        return find_draws(lambda images: self._bounds(images, preprocess), batch, lambda: self._isolated(batch))

    def _bounds(self, batch: Batch, preprocess: Preprocess | None) -> tuple[Tensor, Tensor]:
        return self.objective.bounds(self.model, self.guide, observed(batch, preprocess))

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


def observed(batch: Batch, preprocess: Preprocess | None) -> Batch:
    """Return the arguments of the program for a batch."""
    return batch if preprocess is None else Batch.of(batch.call(preprocess))
