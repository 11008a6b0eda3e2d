r"""One fit among several that take their steps together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyro
from torch import Tensor

from pyro_vae.errors import NonFiniteError
from pyro_vae.infer.epochs import Epoch
from pyro_vae.infer.fit import Fit
from pyro_vae.infer.precision import PRECISIONS
from pyro_vae.infer.streams import OwnStreams
from pyro_vae.trace import Batch, Record


class Member:
    """A fit with its own random streams, and its next step.

    Args:
        make: Function that builds the fit of a seed; it runs in an empty param store and in the seeded streams.
        seed: Seed of the member.

    Raises:
        TypeError: If `make` does not return a `Fit`.
    """

    def __init__(self, make: Callable[[int], Fit], seed: int) -> None:
        self.seed = seed
        self.streams = OwnStreams(seed)
        with self.streams.in_place(), pyro.get_param_store().scope():
            self.fit = make(seed)
        if not isinstance(self.fit, Fit):
            raise TypeError(f"make({seed}) must return a Fit, not an object of type {type(self.fit).__name__}.")
        self.error: NonFiniteError | None = None
        self.batch: Batch | None = None  # of the next step; None at the end of an epoch
        self.record: Record | None = None  # of the next step, where that may be taken by one
        self.inputs: tuple[Tensor, ...] = ()
        self.compares = False  # whether the next step compares its record with the program
        self._batches: Iterator[Batch] = iter(())

    @contextmanager
    def entered(self) -> Iterator[Fit]:
        """Enter the random streams and the param store of the fit."""
        with self.streams.in_place(), self.fit.scope():
            yield self.fit

    def begin_epoch(self) -> None:
        """Fetch the first batch of an epoch."""
        with self.entered():
            self._batches = iter(self.fit._begin_epoch())
            self._look_ahead()

    def compare(self) -> bool:
        """Compare the record of the next step with the program, without side effects; return whether they agree."""
        assert self.batch is not None
        recorded = self.fit.svi.recorded
        assert recorded is not None
        with self.entered(), PRECISIONS[self.fit.svi.precision]():
            return recorded.compare(self.batch)

    def take_step(self) -> None:
        """Take the step of the current batch and fetch the next one."""
        assert self.batch is not None
        with self.entered():
            try:
                self.fit._take_step(self.batch)
            except NonFiniteError as error:
                self.error, self.batch, self.record = error, None, None
                return
            assert self.fit.svi.recorded is None or self.fit.svi.recorded.pending is None  # the step has been that one
            self._look_ahead()

    def take_epoch(self, pause: Callable[[], bool]) -> bool:
        """Take the remaining steps of an epoch; return False if `pause`, called after each step, returned True."""
        with self.entered():
            try:
                return self.fit._take_steps(pause)
            except NonFiniteError as error:
                self.error = error
                return True

    def end_epoch(self) -> Epoch | None:
        """Finish an epoch whose steps have been taken; return None if one was non-finite."""
        with self.entered():
            try:
                return self.fit._end_epoch()
            except NonFiniteError as error:  # of a device that is synchronized only now
                self.error = error
                return None

    def add_seconds(self, seconds: float) -> None:
        """Add to the seconds of the epoch."""
        self.fit._progress.seconds += seconds

    def _look_ahead(self) -> None:
        """Fetch the next batch, and the record of its step if it has one."""
        self.batch, self.record = next(self._batches, None), None
        svi, recorded = self.fit.svi, self.fit.svi.recorded
        # The first step names the parameters, and the first of a fit that has been loaded may name sizes.
        if self.batch is None or recorded is None or svi.steps == 0 or recorded.sizes is None:
            return
        recorded.objective.set_step(svi.steps)
        if recorded.accepts(self.fit.batches.observe, self.batch):
            self.compares = recorded.comparisons.due()
            with PRECISIONS[svi.precision]():
                found = recorded.record(self.batch)
            if found is not None:
                self.record, self.inputs = found
