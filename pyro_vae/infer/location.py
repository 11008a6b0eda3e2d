r"""Locate errors of a fit by step, batch and epoch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyro_vae.errors import NonFiniteError, OutOfMemoryError, UserError, is_out_of_memory
from pyro_vae.infer.epochs import EpochProgress


@contextmanager
def locate_errors(epoch: int, progress: EpochProgress, steps: int, batch: Any = None) -> Iterator[None]:
    """Add the batch and the epoch to errors raised inside the context, with a remedy.

    Args:
        epoch: Index of the current epoch.
        progress: Progress of the current epoch.
        steps: Number of steps taken since the start of the run.
        batch: Current batch, or None outside of a step.

    Raises:
        NonFiniteError: With a note of the batch and the epoch.
        OutOfMemoryError: If a step runs out of memory.
        ValueError: If BatchNorm receives a batch of one image.
    """
    try:
        yield
    except NonFiniteError as error:
        # On CUDA the error is raised at the end of the epoch, and names an earlier step.
        batch_index = error.step - (steps - progress.batches)
        error.add_note(f"That is batch {batch_index} of epoch {epoch}.")
        raise
    except ValueError as error:
        if batch is None or len(batch) > 1 or "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"Batch {progress.batches} of epoch {epoch} holds one image, for which BatchNorm has "
            "no statistics: choose a --batch-size that leaves no batch of one image."
        ) from error
    except RuntimeError as error:
        if batch is None or not is_out_of_memory(error):
            raise
        remedy = f"--batch-size {len(batch) // 2}" if len(batch) > 1 else "fewer particles, or a smaller network"
        raise OutOfMemoryError(
            f"Out of memory in step {steps}, with a batch of {len(batch)} images: try {remedy}."
        ) from error
