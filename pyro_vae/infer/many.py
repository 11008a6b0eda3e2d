r"""Several fits of one program at a time, with steps that are computed as one.

The step of a fit is a function of tensors, so the steps of S fits that differ in nothing but tensors are one batched
function: S small products of matrices become one, and what Python costs per step is paid once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from pyro_vae.errors import NonFiniteError, UserError
from pyro_vae.infer.epochs import Epoch
from pyro_vae.infer.fit import Fit
from pyro_vae.infer.member import Member
from pyro_vae.infer.shared_step import SharedStep
from pyro_vae.infer.streams import restored_streams

_LOG = logging.getLogger("pyro_vae")


class FitMany:
    """Fit a program several times; iterating runs one epoch of every fit and yields their `Epoch`s by seed.

    Every member is an ordinary `Fit`, with a param store, random streams, an optimizer, early stopping and averages of
    its own, and with the numbers of its solo run up to rounding: those of ``pyro.set_rng_seed(seed)`` followed by
    ``make(seed)`` and its epochs. Members may differ in seed, data, learning rate and whatever else is a tensor or
    belongs to the optimizer, such as the weight of `BetaELBO`. They share their steps as long as their programs issue
    the same operations on tensors of the same shapes, and draw by operations whose noise can be drawn beforehand
    (uniform, normal, exponential, Bernoulli); a line of the log says where they do not, and they then run one after the
    other. Steps that a solo run would not replay (the first, a smaller last batch) each member takes by itself.

    A member whose loss or gradient is not finite stays at the weights before that step, with a warning, and takes no
    further part; neither does one that has stopped early. The param store of Pyro stays as it is: read programs that
    use `pyro.param` inside `entered`. The seconds of an epoch are the member's share of those of all.

    Args:
        make: builds the fit of a seed, program included, with ``execution="compiled"`` or ``"recorded"``. What is read
            only, such as the training images, is best made once, outside of it, and is then not repeated in memory.
        seeds: of the members, different ones.

    Raises:
        ValueError: there is no seed, a seed is given twice, or `make` uses the same fit,
            SVI, optimizer or objective twice.
        NonFiniteError: while iterating, where no member is left: that of the first.
        OutOfMemoryError: likewise, for want of memory.

    `fits` are the members by seed, and `errors` those of the members that were not finite.
    """

    def __init__(self, make: Callable[[int], Fit], seeds: Iterable[int]) -> None:
        seeds = list(seeds)
        if not seeds or len(set(seeds)) < len(seeds):
            raise UserError(f"Each fit needs a seed of its own: there are {len(seeds)}, {len(set(seeds))} different.")
        with restored_streams():
            self._members = {seed: Member(make, seed) for seed in seeds}
        self.fits = {seed: member.fit for seed, member in self._members.items()}
        parts = [part for fit in self.fits.values() for part in (fit, fit.svi, fit.svi.optim, fit.svi.objective)]
        if len(set(map(id, parts))) < len(parts):
            raise UserError("make has to build a Fit, an SVI, an optimizer and an objective of its own for each seed.")
        self._shared = SharedStep(list(self._members.values()))

    def __iter__(self) -> Iterator[dict[int, Epoch]]:
        """Run the epochs that remain."""
        self._shared.start()
        try:
            while running := self._running():
                with restored_streams():
                    epochs = self._run_epoch(running)
                if epochs:
                    yield epochs
        finally:
            self._shared.stop()
        for seed, error in self.errors.items():
            _LOG.warning("The fit of seed %s has ended before its time: %s", seed, error)
        if len(self.errors) == len(self._members):
            raise next(iter(self.errors.values()))

    @contextmanager
    def entered(self, seed: int) -> Iterator[Fit]:
        """Enter the param store and the random streams of a member, to save or load its state for one.

        A state that is saved here is that of a solo fit, which can go on from it, and the other way round.
        """
        with restored_streams(), self._members[seed].entered() as fit:
            yield fit

    @property
    def errors(self) -> dict[int, NonFiniteError]:
        """The errors of the members that were not finite, by seed."""
        return {seed: member.error for seed, member in self._members.items() if member.error is not None}

    def _running(self) -> list[Member]:
        return [m for m in self._members.values() if m.error is None and not m.fit.finished]

    def _run_epoch(self, members: list[Member]) -> dict[int, Epoch]:
        """Run an epoch of some members; return the epochs of those whose steps were finite."""
        try:
            self._take_steps(members)
        finally:
            self._shared.release()
        epochs = {member.seed: member.end_epoch() for member in members if member.error is None}
        for member in members:
            if member.error is not None:
                _LOG.warning("The fit of seed %s goes no further: %s", member.seed, member.error)
        return {seed: epoch for seed, epoch in epochs.items() if epoch is not None}

    def _take_steps(self, members: list[Member]) -> None:
        if self._shared.refused:
            for member in members:
                member.take_epoch()
            return
        for member in members:
            member.begin_epoch()
        while stepping := [member for member in members if member.batch is not None]:
            started = time.perf_counter()
            self._shared.compute(stepping)
            for member in stepping:
                member.take_step()
            share = (time.perf_counter() - started) / len(stepping)
            for member in stepping:
                member.add_seconds(share)
