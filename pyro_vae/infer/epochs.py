r"""What an epoch is fed with, what it leaves behind, and how far one has come."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor


class Batches(Protocol):
    """What a fit is fed: the batches of each epoch, a function of the epoch's number."""

    num_images: int

    def __call__(self, epoch: int) -> Iterable[Tensor]:
        """Return the batches (B, ...) of one epoch, in whatever form `observe` takes them."""

    def observe(self, batch: Tensor) -> Tensor:
        """Return the images x (B, ...) of a batch as the program sees them."""


@dataclass(frozen=True)
class Epoch:
    """One epoch. Nats per image; `step` counts from the start of the run, `seconds` are of training alone,
    and `learning_rate` is that of the last step. A program without log weights has no ELBO (None).
    """

    epoch: int
    step: int
    elbo: float | None
    objective: float
    valid_elbo: float | None
    seconds: float
    learning_rate: float
    valid_distortion: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


@dataclass
class Begun:
    """The epoch that has begun: how many batches, and what has been summed over them, in nats and seconds."""

    batches: int = 0
    objective: Tensor = field(default_factory=lambda: torch.zeros(()))
    elbo: Tensor = field(default_factory=lambda: torch.zeros(()))
    seconds: float = 0.0
