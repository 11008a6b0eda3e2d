r"""Result of a step that is computed before, or together with, the update of the parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor


class StepResult(NamedTuple):
    """Outputs of a step.

    Attributes:
        loss: Loss summed over the batch, in nats.
        elbo: ELBO summed over the batch, in nats.
        finite: Whether the loss and all gradients are finite.
        gradients: Gradients by name in the param store.
        stored: `stored_ids` of the param store to which the gradients belong.
        updated: Whether the parameters have been updated.
    """

    loss: Tensor
    elbo: Tensor
    finite: Tensor
    gradients: dict[str, Tensor]
    stored: dict[str, int]
    updated: bool = False

    @classmethod
    def of(cls, static: Any, results: Sequence[Tensor | None], updated: bool = False) -> StepResult:
        """Return the result of a recorded step, given its static values and its tensors."""
        (names, stored), (loss, elbo, finite, *gradients) = static, results
        assert loss is not None and elbo is not None and finite is not None  # noqa: PT018 -- for the type checker
        by_name = {name: g for name, g in zip(names, gradients, strict=True) if g is not None}
        return cls(loss, elbo, finite, by_name, stored, updated)
