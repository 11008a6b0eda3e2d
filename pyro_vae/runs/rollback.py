r"""Rollback of a fit to its last milestone after a non-finite loss or gradient."""

from __future__ import annotations

import logging

from pyro_vae.errors import NonFiniteError
from pyro_vae.infer.fit import Fit
from pyro_vae.runs.checkpoints import Checkpoints

_LOG = logging.getLogger("pyro_vae")

_LR_FACTOR = 0.5


def roll_back(fit: Fit, checkpoints: Checkpoints, error: NonFiniteError, max_rollbacks: int) -> bool:
    """Return a fit to its last milestone and halve the learning rate, see `durable.run_with_checkpoints`.

    Returns:
        Whether it has been done. If no rollback is left, a note of the error names the last checkpoint.
    """
    # Before the first step there is no checkpoint of this run, though perhaps of one that it is to replace.
    begun = error.step > 0
    rolls_back = begun and fit.rollbacks < max_rollbacks
    newest = fit.svi.processes.on_first(lambda: checkpoints.newest(milestone=True)) if rolls_back else None
    if newest is None:
        kept = list(checkpoints.paths().values()) if begun else []
        error.add_note(f"The last good checkpoint is {kept[-1]}." if kept else "There is no checkpoint yet.")
        return False
    step, state = newest
    num_rollbacks = fit.rollbacks + 1
    fit.load_state_dict(state)
    # The factor depends on the loaded state only, so that a run that crashes before its next checkpoint repeats it.
    fit.svi.optim.scale_lr(_LR_FACTOR ** (num_rollbacks - fit.rollbacks))
    fit.rollbacks = num_rollbacks
    fit.svi.processes.on_first(lambda: checkpoints.delete_after(step))
    _LOG.warning("%s Rollback %d: resuming from step %d with half the learning rate.", error, num_rollbacks, step)
    return True
