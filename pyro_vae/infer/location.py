r"""Where in a fit an error has come up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyro_vae.errors import NonFiniteError, OutOfMemoryError, UserError, is_out_of_memory
from pyro_vae.infer.epochs import EpochProgress


@contextmanager
def locate_errors(epoch: int, progress: EpochProgress, steps: int, batch: Any = None) -> Iterator[None]:
    """Name the batch and the epoch of an error that is raised inside, and say what to do about it.

    Args:
        epoch: the number of the present one.
        progress: how many of its batches are done.
        steps: how many steps have been taken in all.
        batch: the present one, where a step is taken.

    Raises:
        NonFiniteError: with a note of the batch and the epoch.
        OutOfMemoryError: the step needs more memory than there is.
        ValueError: BatchNorm has been given a batch of one image.
    """
    try:
        yield
    except NonFiniteError as error:
        # On CUDA the error comes at the end of the epoch, and names an earlier step.
        batch_index = error.step - (steps - progress.batches)
        error.add_note(f"That is batch {batch_index} of epoch {epoch}.")
        raise
    except ValueError as error:
        if batch is None or len(batch) > 1 or "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"Batch {progress.batches} of epoch {epoch} holds one image, of which BatchNorm has no "
            "statistics: choose a --batch-size that leaves no batch of one."
        ) from error
    except RuntimeError as error:
        if batch is None or not is_out_of_memory(error):
            raise
        remedy = f"--batch-size {len(batch) // 2}" if len(batch) > 1 else "fewer particles, or a smaller network"
        raise OutOfMemoryError(
            f"Memory has run out in step {steps}, with a batch of {len(batch)} images: try {remedy}."
        ) from error
