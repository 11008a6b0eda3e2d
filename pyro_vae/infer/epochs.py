r"""What an epoch is fed with, what it leaves behind, and how far one has come."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from pyro_vae.trace import Batch, Data


class Batches(Protocol):
    """What a fit is fed: the batches of each epoch, a function of the epoch's number."""

    def __call__(self, epoch: int) -> Iterable[Data]:
        """Return the batches of one epoch, in whatever form `observe` takes them."""

    @property
    def observe(self) -> Any:
        """What makes of a batch what the program is called with; None where that is the batch itself."""


class Loader:
    """Batches of any iterable that can be gone through again, a `torch.utils.data.DataLoader` for one.

    A shuffled one has another order each time, so that a fit which is resumed in the middle of an epoch sees other
    images than the one that was stopped.

    Args:
        batches: tensors x (B, ...), or tuples or lists of the arguments of the program, or a `Batch` each.

    Raises:
        TypeError: it is no iterable, or an iterator, which can be gone through only once.
    """

    observe = None

    def __init__(self, batches: Iterable[Data]) -> None:
        if not hasattr(batches, "__iter__") or hasattr(batches, "__next__") or isinstance(batches, torch.Tensor):
            kind = type(batches).__name__
            raise TypeError(
                f"Fit takes batches from a DataLoader, a list of batches, or data.Batches, and this is of type {kind}."
            )
        self.batches = batches

    def __call__(self, epoch: int) -> Iterable[Data]:
        """Return the batches of an epoch, in the order of the iterable."""
        return (Batch.of(batch) for batch in self.batches)


@dataclass(frozen=True)
class Epoch:
    """One epoch. Nats per image; `step` counts from the start of the run, `seconds` are of training alone,
    and `learning_rate` is that of the last step. A program without log weights has no ELBO (None).
    """

    index: int
    step: int
    elbo: float | None
    objective: float
    valid_elbo: float | None
    seconds: float
    learning_rate: float
    valid_distortion: float | None

    def __str__(self) -> str:
        """Return one line: the ELBO and that of the validation images, or distortions where there is none, in nats."""
        values = {
            "ELBO": self.elbo,
            "validation ELBO": self.valid_elbo,
            "validation distortion": self.valid_distortion if self.valid_elbo is None else None,
        }
        text = ", ".join(f"{name} {value:.2f}" for name, value in values.items() if value is not None)
        text = text or f"objective {self.objective:.2f}"
        return f"epoch {self.index}: {text} nats, {self.seconds:.1f} s"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name, the index as `epoch`."""
        return {"epoch" if name == "index" else name: value for name, value in asdict(self).items()}


@dataclass
class EpochProgress:
    """The epoch that has begun: how many batches and images, and what is summed over them, in nats and seconds."""

    batches: int = 0
    images: int = 0
    objective: Tensor = field(default_factory=lambda: torch.zeros(()))
    elbo: Tensor = field(default_factory=lambda: torch.zeros(()))
    seconds: float = 0.0

    def add(self, loss: Tensor, elbo: Tensor | None, images: int) -> None:
        """Add a step: its loss and its ELBO, if it has one, summed over its images, in nats."""
        self.objective = self.objective - loss
        self.elbo = self.elbo + (torch.nan if elbo is None else elbo)
        self.batches += 1
        self.images += images

    def finish(self, **results: Any) -> Epoch:
        """Return the epoch of these batches, given what else has been found at its end."""
        elbo = float(self.elbo) / self.images
        objective = float(self.objective) / self.images
        return Epoch(elbo=None if math.isnan(elbo) else elbo, objective=objective, **results)
