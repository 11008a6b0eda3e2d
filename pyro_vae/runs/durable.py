r"""A fit that survives: checkpoints at milestones, by the clock and when it is told to stop, and the way back."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

from pyro_vae.config import Config
from pyro_vae.errors import NonFiniteError
from pyro_vae.infer.epochs import Epoch
from pyro_vae.infer.fit import Fit
from pyro_vae.runs.checkpoints import Checkpoints
from pyro_vae.runs.run_folder import RunFolder

_LOG = logging.getLogger("pyro_vae")

_ROLLBACK_LR_FACTOR = 0.5
_MILESTONES = 20  # of a run, whose checkpoints it may go back to
_MAX_ROLLBACKS = 3


def fit_in_folder(
    fit: Fit, folder: RunFolder, config: Config, *, every_seconds: float, should_stop: Callable[[], bool]
) -> Iterator[Epoch]:
    """Run a fit in a folder that it has claimed, from its newest checkpoint on if there is one.

    Args:
        fit: from its beginning.
        folder: of the run; metrics.jsonl gets a line for each epoch, once.
        config: of the run.
        every_seconds: as in `run_with_checkpoints`.
        should_stop: as in `run_with_checkpoints`.

    Yields:
        Each epoch that remains, as `run_with_checkpoints` does, after its line has been written.

    Raises:
        CheckpointError: there are checkpoints and none is good.
        RunFolderError: metrics.jsonl does not hold the epochs before the checkpoint.
        NonFiniteError, OSError: as `run_with_checkpoints`.
    """
    milestone = -(-fit.epochs // _MILESTONES) * config.steps_per_epoch(fit.batches.num_images)
    checkpoints = Checkpoints(folder.checkpoints, config.to_json(), lambda step: step == 1 or step % milestone == 0)
    if newest := checkpoints.newest():
        step, state = newest
        fit.load_state_dict(state)
        checkpoints.quarantine_after(step)
    folder.truncate_metrics(fit.epoch)  # a kill may have come between an epoch's line and its checkpoint
    written = fit.epoch
    max_rollbacks = _MAX_ROLLBACKS if config.on_nonfinite == "rollback" else 0
    for epoch in run_with_checkpoints(
        fit, checkpoints, every_seconds=every_seconds, should_stop=should_stop, max_rollbacks=max_rollbacks
    ):
        if epoch.index < written:  # it comes again after a setback
            folder.truncate_metrics(epoch.index)
        folder.append_epoch(epoch.as_dict())
        written = epoch.index + 1
        yield epoch


def run_with_checkpoints(
    fit: Fit, checkpoints: Checkpoints, *, every_seconds: float, should_stop: Callable[[], bool], max_rollbacks: int = 0
) -> Iterator[Epoch]:
    """Run the epochs of a fit that remain, and keep checkpoints of it.

    One is written after the first step, at the milestones of the history, at the end, when so many seconds have passed
    since the last, and before stopping. What the caller does with an epoch comes before the checkpoint that follows it,
    so that no checkpoint is ahead of what the caller has written.

    Args:
        fit: from its beginning, or from what it has loaded.
        checkpoints: where checkpoints go.
        every_seconds: between two checkpoints, at most, but for the length of a step.
        should_stop: asked after each step whether to end there, with a checkpoint.
        max_rollbacks: how often to go back to the last milestone, with half the learning rate, when a loss or a
            gradient is not finite. The milestones do not depend on the clock, so that neither does what becomes of the
            run.

    Yields:
        Each epoch; one that comes again after a setback takes the place of what was yielded for it and those after it.

    Raises:
        NonFiniteError: and no setback is left; its notes name the last good checkpoint. Other errors as of `Fit`.
        OSError: a checkpoint cannot be written.
    """
    written = time.monotonic()

    def due() -> bool:
        return should_stop() or fit.svi.steps == 1 or time.monotonic() - written >= every_seconds

    while not fit.finished:
        try:
            for epoch in fit.iterate(due):
                if epoch is not None:
                    yield epoch
                stopping = should_stop()  # asked once: what comes later waits for the next step
                if stopping or fit.finished or due() or checkpoints.is_milestone(fit.svi.steps):
                    checkpoints.save(fit.svi.steps, fit.state_dict())
                    written = time.monotonic()
                if stopping:
                    return
        except NonFiniteError as error:
            if fit.rollbacks >= max_rollbacks:
                kept = list(checkpoints.paths().values())
                error.add_note(f"The last good checkpoint is {kept[-1]}." if kept else "There is no checkpoint yet.")
                raise
            _roll_back(fit, checkpoints, error)


def _roll_back(fit: Fit, checkpoints: Checkpoints, error: NonFiniteError) -> None:
    newest = checkpoints.newest(milestone=True)
    if newest is None:
        raise error
    step, state = newest
    num_rollbacks = fit.rollbacks + 1
    fit.load_state_dict(state)
    # From the state alone, so that a run killed before its next checkpoint does the same again.
    fit.svi.optim.scale_lr(_ROLLBACK_LR_FACTOR ** (num_rollbacks - fit.rollbacks))
    fit.rollbacks = num_rollbacks
    checkpoints.delete_after(step)
    _LOG.warning("%s Setback %d: on from step %d, the learning rate halved.", error, num_rollbacks, step)
