r"""The configuration of a run, made of all groups of flags."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import torch
import tyro

from pyro_vae import data
from pyro_vae.config.choices import AUTO, CHOICES, LEFT_TO_DATA, flag
from pyro_vae.config.groups import (
    DataFlags,
    EvaluationFlags,
    ModelFlags,
    ObjectiveFlags,
    OptimizationFlags,
    RuntimeFlags,
)
from pyro_vae.errors import UserError
from pyro_vae.infer import objectives
from pyro_vae.infer.averaging import check_decay

# Steps from which on a run is compiled: the compiler takes 5 to 60 seconds, and saves 1 to 5 milliseconds of a step.
_COMPILED_STEPS = 10_000


@dataclass(frozen=True)
class Config(RuntimeFlags, EvaluationFlags, OptimizationFlags, ObjectiveFlags, ModelFlags, DataFlags):
    """One run. Nats are per image throughout."""

    def __post_init__(self) -> None:
        for name in ("train_images", "test_images", "image_size", "latent_dim", "hidden_dim", "num_particles"):
            self._at_least(name, 1)
        for name in ("epochs", "batch_size", "num_samples"):
            self._at_least(name, 1)
        self._at_least("depth", 0)
        self._at_least("width", 1)
        self._at_least("patience", 0)
        self._at_least("warmup_epochs", 0)
        # A path is not asked for: a saved run may name a folder that lies elsewhere now.
        if self.data not in data.DATASETS and os.sep not in self.data and not os.path.exists(self.data):
            known = ", ".join(data.DATASETS)
            own = "the path of a folder of images or a file of arrays"
            raise UserError(f"Unknown data {self.data!r}; choose one of {known}, or {own}.")
        if self.channels not in (None, 1, 3):
            raise UserError(f"--channels is {self.channels}; choose 1 or 3.")
        if not all(0 < share < 1 for share in self.splits) or not math.isclose(sum(self.splits), 1.0):
            shown = " ".join(map(str, self.splits))
            raise UserError(f"--splits is {shown}; the three shares must be positive and sum to 1.")
        for name in ("beta", "free_bits", "mmd_weight"):
            objectives.require_nonnegative(flag(name), getattr(self, name))
        if not 0 < self.learning_rate < 1e6:  # float32 has no room for the steps of many more
            raise UserError(f"--learning-rate is {self.learning_rate}; it must be a positive number below 1e6.")
        check_decay(flag("ema"), self.ema)
        for name, choices in CHOICES.items():
            open_to_data = name in LEFT_TO_DATA and getattr(self, name) == AUTO
            if getattr(self, name) not in choices and not open_to_data:
                raise UserError(f"Unknown {name} {getattr(self, name)!r}; choose one of {', '.join(choices)}.")

    def _at_least(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if value is not None and value < least:
            raise UserError(f"{flag(name)} is {value}; it must be at least {least}.")

    def steps_per_epoch(self, num_images: int) -> int:
        """Return the steps of an epoch over so many training images."""
        return math.ceil(num_images / self.batch_size)

    def resolve(self) -> Config:
        """Return the configuration with the defaults that depend on the data set or the machine filled in.

        Raises:
            ValueError: CUDA is asked for and not there.
        """
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: no CUDA device is available here; use --device cpu or auto.")
        auto = "cuda" if torch.cuda.is_available() else "cpu"
        device = auto if self.device == "auto" else self.device
        if self.precision == "tf32" and device != "cuda":
            raise UserError("--precision tf32 is of CUDA devices; on a CPU choose float32 or bf16.")
        dataset = data.defaults(self.data)
        return replace(
            self,
            data=self.data if self.data in data.DATASETS else os.path.abspath(self.data),
            epochs=self.epochs or dataset.epochs,
            num_samples=self.num_samples or dataset.num_samples,
            device=device,
        )

    def execution(self, num_images: int) -> str | None:
        """Return how steps over so many training images run, ``compiled``, ``recorded`` or None.

        It depends on nothing else, so that a run that is resumed goes on as it began.
        """
        if self.compile != "auto":
            return "compiled" if self.compile == "on" else None
        steps = (self.epochs or 0) * self.steps_per_epoch(num_images)
        return "compiled" if steps >= _COMPILED_STEPS else "recorded"

    def to_json(self) -> dict[str, Any]:
        """Return the configuration as JSON values."""
        values = asdict(self) | {"data_root": str(self.data_root), "splits": list(self.splits)}
        return {name: values[name] for name in asdict(self)}


def from_groups(
    data: DataFlags,
    model: ModelFlags,
    objective: ObjectiveFlags,
    optimization: OptimizationFlags,
    evaluation: EvaluationFlags,
    runtime: RuntimeFlags,
) -> Config:
    """Return the configuration that a command line gives in groups, whose names --help shows."""
    groups = (data, model, objective, optimization, evaluation, runtime)
    return Config(**{name: value for group in groups for name, value in vars(group).items()})


# A configuration among the arguments of a script.
ConfigFlags = Annotated[Config, tyro.conf.arg(name="", constructor=from_groups)]
