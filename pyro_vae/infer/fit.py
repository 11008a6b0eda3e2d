r"""The training loop: epochs of SVI steps, validation, early stopping, and a state from which training resumes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any

import pyro

from pyro_vae.errors import UserError
from pyro_vae.infer.averaging import Average
from pyro_vae.infer.epochs import Batches, Epoch, EpochProgress, Loader, first_batch
from pyro_vae.infer.launches import Launches
from pyro_vae.infer.location import locate_errors
from pyro_vae.infer.parameters import State, load_program_state
from pyro_vae.infer.store import IsolatedStore
from pyro_vae.infer.streams import numerics_versions, rng_state, set_rng_state, warn_if_versions_differ
from pyro_vae.infer.svi import SVI
from pyro_vae.infer.validation import Best, validate
from pyro_vae.trace import Batch, Data


class Fit:
    """Fit a program; iterating runs one epoch at a time and yields its `Epoch`.

    A fit starts from an empty param store, because a second program with the same parameter names would silently not
    train. After each epoch it also writes its parameters to the global store, as Pyro users expect. If programs share
    names of `pyro.param`, evaluate each inside the `scope` of its fit. Modules are in training mode during an epoch,
    and only the first step validates the distributions.

    Args:
        svi: Driver that takes the steps.
        batches: Iterable of training batches, e.g. a `torch.utils.data.DataLoader`, or a function of the epoch's index
            that returns one (`data.Batches`). A batch is a tensor, a tuple or list of arguments, or a `Batch`.
        epochs: Total number of epochs.
        valid: Validation images as arguments of the program, any number. Their ELBO is estimated after each epoch with
            one particle and the same noise each time.
        patience: Stop after this many epochs without a better validation ELBO and restore the best parameters; 0
            disables it. Epochs in a warm-up do not count. A program without an ELBO is compared by its distortion.
        seed: Random seed of the validation noise.
        ema: Decay of an exponential moving average of the parameters (`averaging`), e.g. 0.999; 0 disables it.
            Validation and patience use the averages, which finally replace the parameters; see `Average.in_place`.

    Raises:
        ValueError: If `patience` is set without `valid`, or `ema` is outside [0, 1).
        NonFiniteError, OutOfMemoryError: While iterating; the message names the step.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> from pyro_vae import ELBO, SVI, Optim
        >>> def model(x):
        ...     loc = pyro.param("loc", torch.zeros(()))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> svi = SVI(model, lambda x: None, Optim(torch.optim.Adam, {"lr": 0.1}), ELBO())
        >>> epochs = list(Fit(svi, [torch.tensor([3.0, 5.0])], epochs=200))
        >>> print(f"{pyro.param('loc'):.2f}, {epochs[-1].elbo:.2f} nats")  # the mean, and -0.5 - 0.5 log(2 pi)
        4.00, -1.42 nats
    """

    def __init__(
        self,
        svi: SVI,
        batches: Batches | Iterable[Data],
        epochs: int,
        *,
        valid: Data | None = None,
        patience: int = 0,
        seed: int = 0,
        ema: float = 0.0,
    ) -> None:
        if patience and valid is None:
            raise UserError("patience needs validation images: pass valid, or set patience=0.")
        self.svi = svi
        self.batches: Any = batches if hasattr(batches, "observe") else Loader(batches)
        self.epochs = epochs
        self.valid = None if valid is None else Batch.of(valid)
        self.patience = patience
        self.seed = seed
        self.average = Average(ema)
        self.epoch = 0  # epochs completed
        self.best = Best()
        self.rollbacks = 0  # resets to an earlier state so far
        self._progress = EpochProgress()
        self._store, self._launches = IsolatedStore(), Launches(svi)

    def __iter__(self) -> Iterator[Epoch]:
        """Run the remaining epochs."""
        return (record for record in self.iterate(lambda: False) if record is not None)

    def iterate(self, pause: Callable[[], bool]) -> Iterator[Epoch | None]:
        """Run the remaining epochs, and optionally return control between steps.

        Args:
            pause: Called after each step, or launch of several (`launches`); returns whether to return control.

        Yields:
            The `Epoch` at the end of each epoch, and None where `pause` returned True; the state is complete at either.
        """
        while not self.finished:
            with self.scope():
                record = self._end_epoch() if self._take_steps(pause) else None
            self._store.publish()
            yield record

    def scope(self) -> AbstractContextManager[None]:
        """Enter the param store of this fit, which is isolated from other fits."""
        return self._store.scope()

    @property
    def finished(self) -> bool:
        """Whether all epochs are completed, or patience has run out."""
        epochs_since_best = self.epoch - 1 - self.best.epoch
        return self.epoch >= self.epochs or (self.patience > 0 and epochs_since_best >= self.patience)

    def state_dict(self) -> State:
        """Return everything that the next step depends on, as tensors and plain values.

        State that the program keeps outside its parameters, buffers and `pyro.param` is not included.

        Raises:
            ValueError: If no step has been taken.
        """
        if self.svi.steps == 0:
            raise UserError("A fit has no state before its first step, which registers the parameters.")
        with self.scope(), self._located():
            parts = {"svi": self.svi.state_dict(), "average": self.average.state_dict(self.svi)}
        return {
            **parts,
            "epoch": self.epoch,
            "begun": dict(vars(self._progress)),
            "best": self.best._asdict(),
            "setbacks": self.rollbacks,
            "streams": rng_state(),
            "made_with": numerics_versions(),
        }

    def load_state_dict(self, state: State) -> None:
        """Continue from a `state_dict`, including its random generators.

        Raises:
            ValueError: If the state is invalid or belongs to another program, or only one of the fits has an average.
        """
        try:
            with self.scope():
                self.svi.load_state_dict(state["svi"], first_batch(self.batches))
            self.average.load_state_dict(state.get("average"), self.svi)  # absent in states of earlier versions
            self.epoch = state["epoch"]
            self._progress = EpochProgress(**state["begun"])
            self.best = Best(*(state["best"][name] for name in Best._fields))
            self.rollbacks = state["setbacks"]
            numbers = (self.epoch, self.svi.steps, self._progress.batches, self.rollbacks, self.best.epoch + 1)
            if not all(type(number) is int and number >= 0 for number in (*numbers, self.average.steps)):
                raise TypeError(f"invalid counts of epochs, steps, batches and rollbacks: {numbers}")
            set_rng_state(state["streams"])
            saved_versions = dict(state["made_with"])
        except (KeyError, IndexError, TypeError, AttributeError, OverflowError, RuntimeError) as error:
            raise UserError(f"Not a valid state of a fit ({type(error).__name__}: {error}).") from error
        warn_if_versions_differ(saved_versions)
        self._store.publish()

    def _take_steps(self, pause: Callable[[], bool]) -> bool:
        """Take the remaining steps of an epoch; return whether all of them have been taken."""
        batches, progress = self._begin_epoch(), self._progress
        started, before = time.perf_counter(), progress.seconds
        # An average is updated after each step, and a loader may draw random numbers between steps.
        many = not self.average.decay and not isinstance(self.batches, Loader)
        for group in self._launches.groups(batches, progress, self.batches.observe, many=many):
            self._take_step(*group)
            progress.seconds = before + time.perf_counter() - started
            if pause():
                return False
        return True

    def _begin_epoch(self) -> Iterator[Batch]:
        """Prepare the remaining steps of an epoch; return their batches."""
        for root in self.svi.modules:
            root.train()
        if self.svi.recorded:
            self.svi.recorded.comparisons.request()
        return map(Batch.of, islice(self.batches(self.epoch), self._progress.batches, None))

    def _take_step(self, *batches: Batch) -> None:
        """Take the step of a batch, or those of a group, and update the progress of the epoch."""
        with self._located(batches[0]), pyro.validation_enabled(self.svi.steps == 0):
            self._launches.take(batches, self._progress, self.batches.observe)
            self.average.update(self.svi)

    def _located(self, batch: Any = None) -> AbstractContextManager[None]:
        return locate_errors(self.epoch, self._progress, self.svi.steps, batch)

    def _end_epoch(self) -> Epoch:
        """Validate at the end of an epoch and return its metrics; after the last one, set the final parameters."""
        started = time.perf_counter()
        with self._located():
            self.svi.raise_if_nonfinite()  # synchronizes, so that the time of all steps is counted
        seconds = self._progress.seconds + time.perf_counter() - started
        elbo, distortion, model, guide, valid = None, None, self.svi.model, self.svi.guide, self.valid
        with self.average.in_place():
            if valid is not None:
                elbo, distortion = validate(model, guide, valid, self.seed, self.svi.processes.map_parts)
            record = self._progress.finish(
                index=self.epoch,
                step=self.svi.steps,
                seconds=seconds,
                valid_elbo=elbo,
                valid_distortion=distortion,
                learning_rate=float(self.svi.optim.learning_rate),
            )
            if self.patience:
                self.best = self.best.keep_better(record, self.svi)
        self.epoch += 1
        self._progress = EpochProgress()
        if self.finished:
            self.average.settle()
        if self.finished and self.best.parameters is not None:  # averages, if the fit keeps them
            load_program_state(model, guide, self.best.parameters, first_batch(self.batches))
        return record
