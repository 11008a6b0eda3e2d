r"""Fault-tolerant training: checkpoints at milestones, at time intervals and on request; resumption and rollback."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

from pyro_vae.config import Config
from pyro_vae.errors import NonFiniteError
from pyro_vae.infer.epochs import Epoch
from pyro_vae.infer.fit import Fit
from pyro_vae.runs.checkpoints import Checkpoints
from pyro_vae.runs.own_program import save_digests, warn_if_changed
from pyro_vae.runs.rollback import roll_back
from pyro_vae.runs.run_folder import RunFolder

_MILESTONES = 20  # maximum number per run, besides the first step: checkpoints to which it can roll back
_MAX_ROLLBACKS = 3


class DurableFit:
    """A fit in its run folder: its checkpoints, and one line of metrics.jsonl for each epoch.

    A resumed run continues from its newest checkpoint, if there is one. Otherwise `start` creates the folder, or
    replaces its run, after the first step: a program that the first step refuses leaves and replaces nothing.

    Args:
        fit: Fit that has not taken a step.
        folder: Run folder.
        config: Configuration of the run.
        resume: Whether to continue a run in the folder.
        overwrite: Whether to replace a run in the folder.

    Raises:
        CheckpointError: If there are checkpoints and none is valid.
        RunFolderError: If metrics.jsonl lacks an epoch before the checkpoint, or see `RunFolder.create`.
    """

    def __init__(
        self, fit: Fit, folder: RunFolder, config: Config, *, resume: bool = False, overwrite: bool = False
    ) -> None:
        milestone = -(-fit.epochs // _MILESTONES) * config.steps_per_epoch(fit.batches.num_images)
        self.fit, self.folder = fit, folder
        self.checkpoints = Checkpoints(
            folder.checkpoints, config.to_json(), lambda step: step == 1 or step % milestone == 0
        )
        self.max_rollbacks = _MAX_ROLLBACKS if config.on_nonfinite == "rollback" else 0
        self._create = partial(folder.create, config.to_json(), resume=resume, overwrite=overwrite)
        self._program, self._written = config.program, 0
        self.started = False  # whether the folder contains this run
        on_first = fit.svi.processes.on_first
        if on_first(lambda: resume and bool(self.checkpoints.paths())):
            on_first(self._create)
            on_first(lambda: warn_if_changed(folder, config.program))
            newest = on_first(self.checkpoints.newest)
            assert newest is not None
            step, state = newest
            fit.load_state_dict(state)
            on_first(lambda: self.checkpoints.quarantine_after(step))
            # A crash may have left epochs that are newer than the checkpoint.
            on_first(lambda: folder.truncate_metrics(fit.epoch))
            if not fit.finished:
                on_first(folder.reopen)
            self._written, self.started = fit.epoch, True

    def start(self) -> None:
        """Create the folder, or replace its run, if that has not been done.

        Raises:
            NonFiniteError: If the first step was non-finite.
            RunFolderError: See `RunFolder.create`.
        """
        if self.started:
            return
        self.fit.svi.raise_if_nonfinite()  # on CUDA, a step does not wait for the device

        def create() -> None:
            self._create()
            save_digests(self.folder, self._program)
            self.folder.truncate_metrics(0)
            self.folder.reopen()

        self.fit.svi.processes.on_first(create)
        self.started = True

    def write(self, epoch: Epoch) -> None:
        """Append an epoch to metrics.jsonl; one that is repeated after a rollback replaces the former and all later."""
        if self.fit.svi.processes.leads:
            if epoch.index < self._written:
                self.folder.truncate_metrics(epoch.index)
            self.folder.append_epoch(epoch.as_dict())
        self._written = epoch.index + 1


def fit_in_folder(
    fit: Fit,
    folder: RunFolder,
    config: Config,
    *,
    resume: bool = False,
    overwrite: bool = False,
    every_seconds: float,
    should_stop: Callable[[], bool],
) -> Iterator[Epoch]:
    """Run a fit in its run folder, which is created or replaced only after the first step.

    Args:
        fit: See `DurableFit`.
        folder: See `DurableFit`.
        config: See `DurableFit`.
        resume: See `DurableFit`.
        overwrite: See `DurableFit`.
        every_seconds: See `run_with_checkpoints`.
        should_stop: See `run_with_checkpoints`.

    Yields:
        Each remaining epoch, as `run_with_checkpoints` yields it, after its line has been written.

    Raises:
        CheckpointError: See `DurableFit`.
        RunFolderError: See `DurableFit`.
        NonFiniteError: See `run_with_checkpoints`.
        OSError: See `run_with_checkpoints`.
    """
    durable = DurableFit(fit, folder, config, resume=resume, overwrite=overwrite)
    for epoch in run_with_checkpoints(
        fit,
        durable.checkpoints,
        every_seconds=every_seconds,
        should_stop=should_stop,
        max_rollbacks=durable.max_rollbacks,
        start=durable.start,
    ):
        durable.write(epoch)
        yield epoch


def run_with_checkpoints(
    fit: Fit,
    checkpoints: Checkpoints,
    *,
    every_seconds: float,
    should_stop: Callable[[], bool],
    max_rollbacks: int = 0,
    start: Callable[[], None] = lambda: None,
) -> Iterator[Epoch]:
    """Run the remaining epochs of a fit and save checkpoints.

    A checkpoint is saved after the first step, at milestones, when `every_seconds` have passed since the last one,
    before stopping, and at the end. An epoch is yielded before its checkpoint is saved, so that a checkpoint is never
    ahead of the files that the caller writes.

    Args:
        fit: Fit to run, new or with a loaded state.
        checkpoints: Checkpoints of the run.
        every_seconds: Maximum number of seconds between two checkpoints. A step that is running is finished first; on
            CUDA several steps may run at once.
        should_stop: Function called after each step that is finished. If it returns True, in any of several processes
            that share the steps, the fit saves a checkpoint and stops.
        max_rollbacks: Maximum number of rollbacks: after a non-finite loss or gradient, the fit returns to the last
            milestone and halves the learning rate. Milestones do not depend on time, so rollbacks are reproducible.
        start: Called after the first step, and before each epoch is yielded and each checkpoint saved.

    Yields:
        Each epoch. An epoch repeated after a rollback replaces the one yielded before, and all later ones.

    Raises:
        NonFiniteError: If a loss or gradient is non-finite and no rollback is left. A note names the last checkpoint.
        OSError: If a checkpoint cannot be written.
    """
    written = time.monotonic()
    processes = fit.svi.processes
    processes.should_stop = should_stop

    def due() -> bool:
        return processes.stopping or fit.svi.steps == 1 or time.monotonic() - written >= every_seconds

    while not fit.finished:
        try:
            for epoch in fit.iterate(due):
                start()
                if epoch is not None:  # None is yielded between two steps of an epoch if a checkpoint is due
                    yield epoch
                stopping = processes.stopping  # read once, so that a later request takes effect after the next step
                if stopping or fit.finished or due() or checkpoints.is_milestone(fit.svi.steps):
                    if processes.leads:
                        checkpoints.save(fit.svi.steps, fit.state_dict())
                    written = time.monotonic()
                if stopping:
                    return
        except NonFiniteError as error:
            if not roll_back(fit, checkpoints, error, max_rollbacks):
                raise
