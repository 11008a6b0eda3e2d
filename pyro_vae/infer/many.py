r"""Several fits of one program, whose steps are computed as one batched graph.

A step is a function of tensors, so the steps of S fits that differ only in the values of tensors are one function with
a batch dimension of size S: S small matrix products become one batched product.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from pyro_vae.errors import NonFiniteError, UserError, check_seed
from pyro_vae.infer.epochs import Epoch
from pyro_vae.infer.fit import Fit
from pyro_vae.infer.member import Member
from pyro_vae.infer.shared_step import SharedStep
from pyro_vae.infer.streams import restored_streams

_LOG = logging.getLogger("pyro_vae")


class FitMany:
    """Fit a program with several seeds; iterating runs one epoch of every fit and yields their `Epoch`s by seed.

    Each member is an ordinary `Fit` with its own param store, random streams, optimizer, early stopping and averages.
    Its numbers are those of ``pyro.set_rng_seed(seed)`` followed by ``make(seed)`` and its epochs, up to rounding.

    Members may differ in data, learning rate, the weight of `BetaELBO`, and other hyperparameters that are tensors or
    belong to the optimizer. They share their steps if their programs issue the same operations on tensors of the same
    shapes and draw only uniform, normal, exponential and Bernoulli noise. Otherwise they run in sequence, and the
    reason is logged. Each member takes by itself the steps that a solo fit does not replay, e.g. the first one and a
    smaller last batch.

    A member with a non-finite loss or gradient stays at the weights before that step, with a warning, and takes
    no further steps, like one that has stopped early. The global param store is not changed; use `entered` to evaluate
    programs that call `pyro.param`. `Epoch.seconds` is the member's share of the time of all.

    Args:
        make: Function of a seed that builds its `Fit`, including the program, SVI, optimizer and objective, with
            ``execution="compiled"`` or ``"recorded"``. Load read-only data such as the training images outside of it,
            so that the members share the memory.
        seeds: Seeds of the members, all different.

    Attributes:
        fits: The members' `Fit` by seed.

    Raises:
        ValueError: If there is no seed, a seed repeats or has more than 32 bits, or members share a fit, SVI, optimizer
            or objective.
        TypeError: If `make` does not return a `Fit`.
        NonFiniteError: While iterating, if every member has failed; it is that of the first.
        OutOfMemoryError: While iterating.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> from pyro_vae import ELBO, SVI, Fit, Optim
        >>> def make(seed):
        ...     def model(x):
        ...         loc = pyro.param("loc", torch.randn(()))
        ...         with pyro.plate("data", len(x)):
        ...             pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        ...     optim = Optim(torch.optim.Adam, {"lr": 0.1})
        ...     svi = SVI(model, lambda x: None, optim, ELBO(), execution="recorded")
        ...     return Fit(svi, [torch.tensor([3.0, 5.0])], epochs=200)
        >>> epochs = list(FitMany(make, seeds=range(3)))
        >>> print([f"{epoch.elbo:.2f} nats" for epoch in epochs[-1].values()])
        ['-1.42 nats', '-1.42 nats', '-1.42 nats']
    """

    def __init__(self, make: Callable[[int], Fit], seeds: Iterable[int]) -> None:
        seeds = list(seeds)
        if not seeds or len(set(seeds)) < len(seeds):
            raise UserError(f"Each fit needs a different seed: there are {len(seeds)}, {len(set(seeds))} different.")
        for seed in seeds:
            check_seed("The seed of a fit", seed)
        with restored_streams():
            self._members = {seed: Member(make, seed) for seed in seeds}
        self.fits = {seed: member.fit for seed, member in self._members.items()}
        parts = [part for fit in self.fits.values() for part in (fit, fit.svi, fit.svi.optim, fit.svi.objective)]
        if len(set(map(id, parts))) < len(parts):
            raise UserError("make must build a new Fit, SVI, optimizer and objective for each seed.")
        self._shared = SharedStep(list(self._members.values()))

    def __iter__(self) -> Iterator[dict[int, Epoch]]:
        """Run the epochs that remain."""
        reported: set[int] = set()
        for epochs in self.iterate(lambda: False):
            self._shared.release()
            for seed in self.errors.keys() - reported:
                _LOG.warning("The fit of seed %s stops here: %s", seed, self.errors[seed])
            reported |= self.errors.keys()
            if epochs:
                yield epochs
        for seed, error in self.errors.items():
            _LOG.warning("The fit of seed %s has failed: %s", seed, error)
        if len(self.errors) == len(self._members):
            raise next(iter(self.errors.values()))

    def iterate(self, pause: Callable[[], bool]) -> Iterator[dict[int, Epoch] | None]:
        """Run the epochs that remain, and optionally return control between steps.

        Members whose state is loaded at a different epoch run the same number of epochs at a time. Tensors of several
        members may be views of one tensor while the iterator is suspended.

        Args:
            pause: Called after each step of all members; returns whether to return control to the caller.

        Yields:
            The `Epoch`s of those members that did not fail, by seed, at the end of each epoch, and None where `pause`
            returned True; the state of each member is complete at either. A member in `errors` takes no further steps
            unless `retry` is called.
        """
        self._shared.start()
        try:
            while running := self._running():
                with restored_streams():
                    epochs = self._run_epoch(running, pause)
                yield epochs
        finally:
            self._shared.stop()

    def retry(self, seed: int) -> None:
        """Let a member that has failed continue from its present state, e.g. an earlier one that has been loaded."""
        self._members[seed].error = None

    @contextmanager
    def entered(self, seed: int) -> Iterator[Fit]:
        """Enter the param store and the random streams of a member, e.g. to save or load its state between epochs.

        A solo `Fit` can load the `Fit.state_dict` of a member, and a member that of a solo fit.
        """
        with restored_streams(), self._members[seed].entered() as fit:
            yield fit

    @property
    def errors(self) -> dict[int, NonFiniteError]:
        """The `NonFiniteError` of each member that has failed, by seed."""
        return {seed: member.error for seed, member in self._members.items() if member.error is not None}

    def _running(self) -> list[Member]:
        return [m for m in self._members.values() if m.error is None and not m.fit.finished]

    def _run_epoch(self, members: list[Member], pause: Callable[[], bool]) -> dict[int, Epoch] | None:
        """Run an epoch of some members; return the `Epoch`s of those that did not fail, or None if it was paused."""
        try:
            if not self._take_steps(members, pause):
                return None
        except BaseException:
            self._shared.release()
            raise
        epochs = {member.seed: member.end_epoch() for member in members if member.error is None}
        return {seed: epoch for seed, epoch in epochs.items() if epoch is not None}

    def _take_steps(self, members: list[Member], pause: Callable[[], bool]) -> bool:
        """Take the remaining steps of an epoch; return whether all of them have been taken."""
        if self._shared.refused:
            return all(member.take_epoch(pause) for member in members)  # stops at the first that is paused
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
            if pause():
                return False
        return True
