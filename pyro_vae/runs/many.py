r"""Several fits that share their steps, each in its own run folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping

from pyro_vae.config import Config
from pyro_vae.errors import with_notes
from pyro_vae.infer.epochs import Epoch
from pyro_vae.infer.many import FitMany
from pyro_vae.runs.durable import DurableFit
from pyro_vae.runs.rollback import roll_back
from pyro_vae.runs.run_folder import RunFolder

_LOG = logging.getLogger("pyro_vae")


def fit_many_in_folders(
    many: FitMany,
    folders: Mapping[int, RunFolder],
    configs: Mapping[int, Config],
    *,
    resume: bool = False,
    overwrite: bool = False,
    every_seconds: float,
    should_stop: Callable[[], bool],
) -> Iterator[dict[int, Epoch]]:
    """Run several fits, each in its run folder as `fit_in_folder` runs one.

    A member that fails, and has no rollback left, stops at its last good weights; a warning is logged, and the others
    continue.

    Args:
        many: Fits that have not taken a step.
        folders: Run folder of each fit by its seed.
        configs: Configuration of each run by its seed.
        resume: See `DurableFit`.
        overwrite: See `DurableFit`.
        every_seconds: Maximum number of seconds between two checkpoints of each fit.
        should_stop: Called after each step of all fits. If it returns True, the fits save checkpoints and stop.

    Yields:
        The epochs of the fits by their seeds, after their lines have been written.

    Raises:
        CheckpointError: See `DurableFit`.
        RunFolderError: See `DurableFit`.
        OSError: If a checkpoint cannot be written.
    """
    durable: dict[int, DurableFit] = {}
    for seed in many.fits:
        with many.entered(seed) as fit:
            durable[seed] = DurableFit(fit, folders[seed], configs[seed], resume=resume, overwrite=overwrite)
    written = time.monotonic()

    def due() -> bool:
        first = any(fit.svi.steps == 1 for seed, fit in many.fits.items() if seed not in many.errors)
        return should_stop() or first or time.monotonic() - written >= every_seconds

    failed: set[int] = set()  # without a rollback left
    for epochs in many.iterate(due):  # None between two steps of an epoch if a checkpoint is due
        for seed, run in durable.items():
            if seed not in many.errors and run.fit.svi.steps > 0:
                run.start()
        for seed, epoch in (epochs or {}).items():
            durable[seed].write(epoch)
        if epochs:
            yield epochs
        stopping = should_stop()  # called once, so that a later request takes effect after the next step
        every = stopping or due()
        for seed, run in durable.items():
            if seed not in many.errors and _saves(run, ended=epochs is not None and seed in epochs, due=every):
                with many.entered(seed) as fit:
                    run.checkpoints.save(fit.svi.steps, fit.state_dict())
        written = time.monotonic() if every else written
        if stopping:
            return
        for seed in many.errors.keys() - failed:
            with many.entered(seed) as fit:
                retried = roll_back(fit, durable[seed].checkpoints, many.errors[seed], durable[seed].max_rollbacks)
            if retried:
                many.retry(seed)
            else:
                failed.add(seed)
                _LOG.warning("The fit of seed %s stops here: %s", seed, with_notes(many.errors[seed]))


def _saves(run: DurableFit, *, ended: bool, due: bool) -> bool:
    """Return whether to save a checkpoint of a fit, given whether it has ended an epoch and whether one is due."""
    fit = run.fit
    if ended and (fit.finished or run.checkpoints.is_milestone(fit.svi.steps)):
        return True
    return due and not fit.finished and fit.svi.steps > 0  # a fit without a step has no state
