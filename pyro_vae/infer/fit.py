r"""The loop: epochs of SVI steps, the ELBO of each in nats, early stopping, and a state that can be resumed."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import pyro
import torch
from torch import Tensor

from pyro_vae.infer.objectives import ELBO
from pyro_vae.infer.parameters import State, load_parameters, parameters, roots
from pyro_vae.infer.svi import SVI
from pyro_vae.trace import reading

_VALID_BATCH = 1000


class Batches(Protocol):
    """What a fit is fed: the batches of each epoch, a function of the epoch's number."""

    num_images: int

    def __call__(self, epoch: int) -> Iterable[Tensor]:
        """Return the batches (B, ...) of one epoch, in whatever form `observe` takes them."""

    def observe(self, batch: Tensor) -> Tensor:
        """Return the images x (B, ...) of a batch as the program sees them."""


@dataclass(frozen=True)
class Epoch:
    """One epoch. Nats per image; `step` counts from the start of the run, `seconds` are of training alone,
    and `learning_rate` is that of the last step.
    """

    epoch: int
    step: int
    elbo: float | None
    objective: float
    valid_elbo: float | None
    seconds: float
    learning_rate: float

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


class Fit:
    """Fit a program; iterating runs one epoch at a time and yields its `Epoch`.

    A fit starts from an empty param store, since a second program of the same parameter names would silently
    not train, and leaves its parameters in the store after each epoch, as Pyro users expect. Where two fitted
    programs share names of `pyro.param`, read each inside the `scope` of its fit. Each epoch runs with the
    modules in training mode; the first step validates the distributions, the others do not.

    Args:
        driver: the SVI that takes the steps.
        batches: the training images.
        epochs: number of epochs in all.
        valid: validation images (N, ...) as the program sees them; their ELBO is estimated after each epoch
            with one particle and the same noise every time.
        patience: stop after this many epochs without a better validation ELBO and return to the parameters
            of the best; 0 never stops.
        seed: seed of the validation noise.

    Raises:
        ValueError: patience without validation images.
        NonFiniteError: while iterating, names the step.
    """

    def __init__(
        self,
        driver: SVI,
        batches: Batches,
        epochs: int,
        *,
        valid: Tensor | None = None,
        patience: int = 0,
        seed: int = 0,
    ) -> None:
        if patience and valid is None:
            raise ValueError("patience needs validation images: pass valid, or patience=0.")
        self.svi = driver
        self.batches = batches
        self.epochs = epochs
        self.valid = valid
        self.patience = patience
        self.seed = seed
        self.epoch = 0
        self.best_elbo = -math.inf
        self.best_epoch = -1
        self.best: State | None = None
        self._store: Any = {"params": {}, "constraints": {}}

    def __iter__(self) -> Iterator[Epoch]:
        """Run the epochs that remain."""
        while not self.finished:
            with self.scope():
                record = self._run_epoch()
                self.epoch += 1
                self._watch(record)
                if self.finished and self.best is not None:
                    load_parameters(self.svi.model, self.svi.guide, self.best, self._some_images())
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
        waited = self.epoch - 1 - self.best_epoch
        return self.epoch >= self.epochs or (self.patience > 0 and waited >= self.patience)

    def state_dict(self) -> State:
        """Return all that the next epoch depends on: tensors and plain numbers only."""
        with self.scope():
            driver = self.svi.state_dict()
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {
            "svi": driver,
            "epoch": self.epoch,
            "best": {"elbo": self.best_elbo, "epoch": self.best_epoch, "parameters": self.best},
            "rng": {"cpu": torch.get_rng_state(), "cuda": cuda},
        }

    def load_state_dict(self, state: State) -> None:
        """Continue from what `state_dict` returned, random streams included."""
        with self.scope():
            self.svi.load_state_dict(state["svi"], self._some_images())
        self.epoch = state["epoch"]
        self.best_elbo, self.best_epoch = state["best"]["elbo"], state["best"]["epoch"]
        self.best = state["best"]["parameters"]
        torch.set_rng_state(state["rng"]["cpu"])
        if state["rng"]["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["rng"]["cuda"])

    def _some_images(self) -> Tensor:
        return self.batches.observe(next(iter(self.batches(0))))

    def _publish(self) -> None:
        store = pyro.get_param_store()
        before = store.get_state()
        params = before["params"] | self._store["params"]
        store.set_state({"params": params, "constraints": before["constraints"] | self._store["constraints"]})

    def _run_epoch(self) -> Epoch:
        for root in roots(self.svi.model, self.svi.guide):
            root.train()
        objective, elbo = torch.zeros(()), torch.zeros(())
        start = time.perf_counter()
        for batch in self.batches(self.epoch):
            with pyro.validation_enabled(self.svi.steps == 0):
                objective = objective - self.svi.step(batch, observe=self.batches.observe)
            elbo = elbo + (torch.nan if self.svi.elbo is None else self.svi.elbo)
        self.svi.check()  # waits for the device, so that the seconds are those of the epoch
        seconds = time.perf_counter() - start
        num_images = self.batches.num_images
        return Epoch(
            epoch=self.epoch,
            step=self.svi.steps,
            elbo=None if self.svi.elbo is None else float(elbo) / num_images,
            objective=float(objective) / num_images,
            valid_elbo=None if self.valid is None else self._valid_elbo(self.valid),
            seconds=seconds,
            learning_rate=float(self.svi.optim.learning_rate),
        )

    def _valid_elbo(self, valid: Tensor) -> float:
        model, guide = self.svi.model, self.svi.guide
        with torch.no_grad(), reading(model, guide, x=valid, seed=self.seed):
            bounds = [ELBO().bounds(model, guide, x)[1].sum() for x in valid.split(_VALID_BATCH)]
        return float(torch.stack(bounds).sum()) / len(valid)

    def _watch(self, record: Epoch) -> None:
        if not self.patience or record.valid_elbo is None or not record.valid_elbo > self.best_elbo:
            return
        self.best_elbo, self.best_epoch = record.valid_elbo, record.epoch
        values = parameters(self.svi.model, self.svi.guide, self.svi.optim.params)
        self.best = torch.utils._pytree.tree_map_only(Tensor, torch.clone, values)
