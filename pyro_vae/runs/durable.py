r"""A fit that survives: checkpoints at milestones, by the clock and when it is told to stop, and the way back."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

from pyro_vae.config import Config
from pyro_vae.errors import NonFiniteError
from pyro_vae.infer.epochs import Epoch
from pyro_vae.infer.fit import Fit
from pyro_vae.runs.checkpoints import History
from pyro_vae.runs.run_folder import RunFolder

_LOG = logging.getLogger("pyro_vae")

_SLOWER = 0.5
_MILESTONES = 20  # of a run, whose checkpoints it may go back to
_SETBACKS = 3


def fit_in_folder(
    fit: Fit, folder: RunFolder, config: Config, *, seconds: float, stop: Callable[[], bool]
) -> Iterator[Epoch]:
    """Run a fit in a folder that it has claimed, from its newest checkpoint on if there is one.

    Args:
        fit: from its beginning.
        folder: of the run; metrics.jsonl gets a line for each epoch, once.
        config: of the run.
        seconds: as in `durably`.
        stop: as in `durably`.

    Yields:
        Each epoch that remains, as `durably` does, after its line has been written.

    Raises:
        CheckpointError: there are checkpoints and none is good.
        RunFolderError: metrics.jsonl does not hold the epochs before the checkpoint.
        NonFiniteError, OSError: as `durably`.
    """
    milestone = -(-fit.epochs // _MILESTONES) * config.epoch_steps(fit.batches.num_images)
    history = History(folder.checkpoints, config.to_json(), lambda step: step == 1 or step % milestone == 0)
    if found := history.newest():
        step, state = found
        fit.load_state_dict(state)
        history.set_aside_after(step)
    folder.keep_metrics(fit.epoch)  # a kill may have come between an epoch's line and its checkpoint
    written = fit.epoch
    rollbacks = _SETBACKS if config.on_nonfinite == "rollback" else 0
    for epoch in durably(fit, history, seconds=seconds, stop=stop, rollbacks=rollbacks):
        if epoch.index < written:  # it comes again after a setback
            folder.keep_metrics(epoch.index)
        folder.append_metrics(epoch.as_dict())
        written = epoch.index + 1
        yield epoch


def durably(
    fit: Fit, history: History, *, seconds: float, stop: Callable[[], bool], rollbacks: int = 0
) -> Iterator[Epoch]:
    """Run the epochs of a fit that remain, and keep checkpoints of it.

    One is written after the first step, at the milestones of the history, at the end, when so many seconds have passed
    since the last, and before stopping. What the caller does with an epoch comes before the checkpoint that follows it,
    so that no checkpoint is ahead of what the caller has written.

    Args:
        fit: from its beginning, or from what it has loaded.
        history: where checkpoints go.
        seconds: between two checkpoints, at most, but for the length of a step.
        stop: asked after each step whether to end there, with a checkpoint.
        rollbacks: how often to go back to the last milestone, with half the learning rate, when a loss or a gradient is
            not finite. The milestones do not depend on the clock, so that neither does what becomes of the run.

    Yields:
        Each epoch; one that comes again after a setback takes the place of what was yielded for it and those after it.

    Raises:
        NonFiniteError: and no setback is left; its notes name the last good checkpoint. Other errors as of `Fit`.
        OSError: a checkpoint cannot be written.
    """
    written = time.monotonic()

    def due() -> bool:
        return stop() or fit.svi.steps == 1 or time.monotonic() - written >= seconds

    while not fit.finished:
        try:
            for epoch in fit.iterate(due):
                if epoch is not None:
                    yield epoch
                stopping = stop()  # asked once: what comes later waits for the next step
                if stopping or fit.finished or due() or history.is_milestone(fit.svi.steps):
                    history.save(fit.svi.steps, fit.state_dict())
                    written = time.monotonic()
                if stopping:
                    return
        except NonFiniteError as error:
            if fit.rollbacks >= rollbacks:
                kept = list(history.paths().values())
                error.add_note(f"The last good checkpoint is {kept[-1]}." if kept else "There is no checkpoint yet.")
                raise
            _go_back(fit, history, error)


def _go_back(fit: Fit, history: History, error: NonFiniteError) -> None:
    found = history.newest(milestone=True)
    if found is None:
        raise error
    step, state = found
    number = fit.rollbacks + 1
    fit.load_state_dict(state)
    # From the state alone, so that a run killed before its next checkpoint does the same again.
    fit.svi.optim.scale_lr(_SLOWER ** (number - fit.rollbacks))
    fit.rollbacks = number
    history.forget_after(step)
    _LOG.warning("%s Setback %d: on from step %d, the learning rate halved.", error, number, step)
