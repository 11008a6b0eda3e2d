r"""Batches of an epoch, its metrics, and its progress."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pyro_vae.trace import Batch, Data
from pyro_vae.trace.isolation import fork_rng


class Batches(Protocol):
    """The training data of a fit: the batches of each epoch, as a function of the epoch's index."""

    def __call__(self, epoch: int) -> Iterable[Data]:
        """Return the batches of one epoch, in any form that `observe` accepts."""

    @property
    def observe(self) -> Any:
        """Function that maps a batch to the arguments of the program; None if the batch already holds them."""


class Loader:
    """Batches from any iterable that supports several passes, e.g. a `torch.utils.data.DataLoader`.

    A loader that shuffles has another order in each pass, so that a fit resumed in the middle of an epoch sees other
    images than an uninterrupted one.

    Args:
        batches: Iterable of batches, each a tensor x (B, ...), a tuple or list of the program's arguments, or a
            `Batch`.

    Raises:
        TypeError: If `batches` is a tensor, an array, not iterable, or an iterator, which supports only one pass.
    """

    observe = None

    def __init__(self, batches: Iterable[Data]) -> None:
        whole = isinstance(batches, (torch.Tensor, np.ndarray))  # iterating would take each image for a batch
        if not hasattr(batches, "__iter__") or hasattr(batches, "__next__") or whole:
            kind = type(batches).__name__
            raise TypeError(
                f"Fit takes batches from a DataLoader, a list of batches, or data.Batches, not from a {kind}."
            )
        self.batches = batches

    def __call__(self, epoch: int) -> Iterable[Data]:
        """Return the batches of an epoch, in the order of the iterable."""
        return (Batch.of(batch) for batch in self.batches)


def first_batch(batches: Batches) -> Batch:
    """Return the arguments of the first batch of epoch 0; random generators are restored."""
    with fork_rng(torch.empty(0)):  # from which a shuffled loader draws
        batch = Batch.of(next(iter(batches(0))))
        return batch if batches.observe is None else Batch.of(batch.call(batches.observe))


@dataclass(frozen=True)
class Epoch:
    """Metrics of one epoch, in nats per image.

    Attributes:
        index: Index of the epoch, from 0.
        step: Number of steps since the start of the run.
        elbo: Mean ELBO of the training images during the epoch; None for a program without log weights.
        objective: Mean objective of the training images during the epoch.
        valid_elbo: ELBO of the validation images after the epoch, or None.
        seconds: Wall time of the steps, without validation.
        learning_rate: Learning rate of the last step.
        valid_distortion: Distortion of the validation images after the epoch, or None.
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
        """Return one line in nats: ELBO and validation ELBO, or else validation distortion or objective."""
        values = {
            "ELBO": self.elbo,
            "validation ELBO": self.valid_elbo,
            "validation distortion": self.valid_distortion if self.valid_elbo is None else None,
        }
        text = ", ".join(f"{name} {value:.2f}" for name, value in values.items() if value is not None)
        text = text or f"objective {self.objective:.2f}"
        return f"epoch {self.index}: {text} nats, {self.seconds:.1f} s"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name, with `index` renamed to `epoch`."""
        return {"epoch" if name == "index" else name: value for name, value in asdict(self).items()}


@dataclass
class EpochProgress:
    """Progress of the current epoch: numbers of batches and images, and sums over them in nats and seconds."""

    batches: int = 0
    images: int = 0
    objective: Tensor = field(default_factory=lambda: torch.zeros(()))
    elbo: Tensor = field(default_factory=lambda: torch.zeros(()))
    seconds: float = 0.0

    def add(self, loss: Tensor, elbo: Tensor | None, images: int) -> None:
        """Add a step, given its loss and ELBO, summed over the batch in nats."""
        self.objective = self.objective - loss
        self.elbo = self.elbo + (torch.nan if elbo is None else elbo)
        self.batches += 1
        self.images += images

    def finish(self, **results: Any) -> Epoch:
        """Return the metrics of the finished epoch: means over its images, and `results` for all other fields."""
        elbo = float(self.elbo) / self.images
        objective = float(self.objective) / self.images
        return Epoch(elbo=None if math.isnan(elbo) else elbo, objective=objective, **results)
