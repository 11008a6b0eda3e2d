r"""The loop: epochs of SVI steps, the ELBO of each in nats, early stopping, and a state that can be resumed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from typing import Any

import pyro
import torch

from pyro_vae.errors import UserError
from pyro_vae.infer.averaging import Average
from pyro_vae.infer.epochs import Batches, Epoch, EpochProgress, Loader
from pyro_vae.infer.location import locate_errors
from pyro_vae.infer.parameters import State, load_program_state
from pyro_vae.infer.streams import numerics_versions, rng_state, set_rng_state, warn_if_versions_differ
from pyro_vae.infer.svi import SVI
from pyro_vae.infer.validation import Best, validate
from pyro_vae.trace import Batch, Data
from pyro_vae.trace.isolation import fork_rng


class Fit:
    """Fit a program; iterating runs one epoch at a time and yields its `Epoch`.

    A fit starts from an empty param store, since a second program of the same parameter names would silently not train,
    and leaves its parameters in the store after each epoch, as Pyro users expect. Where two fitted programs share names
    of `pyro.param`, read each inside the `scope` of its fit. Each epoch runs with the modules in training mode; the
    first step validates the distributions, the others do not.

    Args:
        svi: the SVI that takes the steps.
        batches: the training images: any iterable of batches, such as a `torch.utils.data.DataLoader`, where a batch is
            a tensor x (B, ...), a tuple or list of the program's arguments, or a `Batch`; or a function of the epoch's
            number that returns one (`data.Batches`).
        epochs: number of epochs in all.
        valid: validation images as the program sees them, a batch of any size; their ELBO is estimated after each epoch
            with one particle and the same noise every time.
        patience: stop after this many epochs without a better validation ELBO and return to the parameters of the best;
            0 never stops. Where there is no ELBO it is the distortion that counts.
        seed: seed of the validation noise.
        ema: decay of an exponential moving average of the parameters over the steps (`averaging`), such as 0.999; 0
            keeps none. Validation and patience are of the averages, and at the end the parameters become them. Until
            then they are those that train; inside `with fit.average.in_place():` they are the averages.

    Raises:
        ValueError: patience without validation images, or a decay outside [0, 1).
        NonFiniteError: while iterating, names the step, the epoch and the batch.
        OutOfMemoryError: likewise.
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
            raise UserError("patience needs validation images: pass valid, or patience=0.")
        self.svi = svi
        self.batches: Any = batches if hasattr(batches, "observe") else Loader(batches)
        self.epochs = epochs
        self.valid = None if valid is None else Batch.of(valid)
        self.patience = patience
        self.seed = seed
        self.average = Average(ema)
        self.epoch = 0  # how many are done
        self.best = Best()
        self.rollbacks = 0  # how often the fit has been put back to an earlier state
        self._progress = EpochProgress()
        self._store: Any = {"params": {}, "constraints": {}}

    def __iter__(self) -> Iterator[Epoch]:
        """Run the epochs that remain."""
        return (record for record in self.iterate(lambda: False) if record is not None)

    def iterate(self, pause: Callable[[], bool]) -> Iterator[Epoch | None]:
        """Run the epochs that remain, and hand over between steps as well.

        Args:
            pause: asked after each step whether to hand over.

        Yields:
            The `Epoch` at the end of each, and None where `pause` has asked for it; the state is whole at either.
        """
        while not self.finished:
            with self.scope():
                record = self._end_epoch() if self._take_steps(pause) else None
            self._publish()
            yield record

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Enter the param store of this fit, which no other fit has changed."""
        store = pyro.get_param_store()
        with store.scope(self._store):
            try:
                yield
            finally:
                self._store.update(store.get_state())

    @property
    def finished(self) -> bool:
        """Whether no epoch remains, or patience has run out."""
        waited = self.epoch - 1 - self.best.epoch
        return self.epoch >= self.epochs or (self.patience > 0 and waited >= self.patience)

    def state_dict(self) -> State:
        """Return all that the next step depends on: tensors and plain values only.

        A program's own state must be in parameters, buffers or `pyro.param`; what it keeps elsewhere is not known here.

        Raises:
            ValueError: no step has been taken.
        """
        if self.svi.steps == 0:
            raise UserError("A fit has no state before its first step, which finds the parameters.")
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
        """Continue from what `state_dict` returned, random streams included.

        Raises:
            ValueError: the state is of another program, or of a fit with an average where this one has none.
        """
        try:
            with self.scope():
                self.svi.load_state_dict(state["svi"], self._first_batch())
            self.average.load_state_dict(state.get("average"), self.svi)  # earlier versions had none
            self.epoch = state["epoch"]
            self._progress = EpochProgress(**state["begun"])
            self.best = Best(*(state["best"][name] for name in Best._fields))
            self.rollbacks = state["setbacks"]
            numbers = (self.epoch, self.svi.steps, self._progress.batches, self.rollbacks, self.best.epoch + 1)
            if not all(type(number) is int and number >= 0 for number in (*numbers, self.average.steps)):
                raise TypeError(f"epochs, steps and rollbacks are {numbers}")
            set_rng_state(state["streams"])
            then = dict(state["made_with"])
        except (KeyError, IndexError, TypeError, AttributeError, OverflowError, RuntimeError) as error:
            raise UserError(f"The state is not that of a fit ({type(error).__name__}: {error}).") from error
        warn_if_versions_differ(then)
        self._publish()

    def _first_batch(self) -> Batch:
        with fork_rng(torch.empty(0)):  # which a shuffled loader draws from
            batch = Batch.of(next(iter(self.batches(0))))
            return batch if self.batches.observe is None else Batch.of(batch.call(self.batches.observe))

    def _publish(self) -> None:
        store = pyro.get_param_store()
        merged: Any = {part: values | self._store[part] for part, values in store.get_state().items()}
        store.set_state(merged)

    def _take_steps(self, pause: Callable[[], bool]) -> bool:
        """Take the steps that remain of an epoch; return whether all are taken."""
        batches = self._begin_epoch()
        progress = self._progress
        started, before = time.perf_counter(), progress.seconds
        for batch in batches:
            self._take_step(batch)
            progress.seconds = before + time.perf_counter() - started
            if pause():
                return False
        return True

    def _begin_epoch(self) -> Iterator[Batch]:
        """Prepare for the steps that remain of an epoch; return their batches."""
        for root in self.svi.modules:
            root.train()
        if self.svi.recorded:
            self.svi.recorded.compare_soon()
        return map(Batch.of, islice(self.batches(self.epoch), self._progress.batches, None))

    def _take_step(self, batch: Batch) -> None:
        """Take a step, and account for it."""
        with self._located(batch), pyro.validation_enabled(self.svi.steps == 0):
            loss = self.svi.step(batch, preprocess=self.batches.observe)
            self.average.update(self.svi)
        self._progress.add(loss, self.svi.elbo, len(batch))

    def _located(self, batch: Any = None) -> AbstractContextManager[None]:
        return locate_errors(self.epoch, self._progress, self.svi.steps, batch)

    def _end_epoch(self) -> Epoch:
        """Look at the epoch whose steps have been taken."""
        progress = self._progress
        started = time.perf_counter()
        with self._located():
            self.svi.raise_if_nonfinite()  # waits for the device, so that the seconds are those of the epoch
        model, guide, valid = self.svi.model, self.svi.guide, self.valid
        with self.average.in_place():
            elbo, distortion = (None, None) if valid is None else validate(model, guide, valid, self.seed)
            record = progress.finish(
                index=self.epoch,
                step=self.svi.steps,
                seconds=progress.seconds + time.perf_counter() - started,
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
            if self.best.parameters is not None:  # of averages, where the fit keeps them
                load_program_state(model, guide, self.best.parameters, self._first_batch())
        return record
