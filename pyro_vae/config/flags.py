r"""The configuration of a run: all groups of flags, validated."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
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
from pyro_vae.errors import UserError, check_count, check_seed
from pyro_vae.infer import objectives
from pyro_vae.infer.averaging import check_decay

# Runs of at least this many steps are compiled. Compilation takes 5 to 60 seconds, and saves 1 to 5 ms per step.
_COMPILED_STEPS = 10_000
# The least value of each count, and the largest one if it is less than for all counts.
_RANGES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("train_images", "test_images", "image_size", "latent_dim", "hidden_dim", "num_particles"), (1,)),
    **dict.fromkeys(("epochs", "batch_size", "num_samples", "deterministic_shards", "width"), (1,)),
    **dict.fromkeys(("patience", "warmup_epochs"), (0,)),
    "depth": (0, 1000),  # each layer is a Python object, and a loop would make them until the memory is full
}


@dataclass(frozen=True)
class Config(RuntimeFlags, EvaluationFlags, OptimizationFlags, ObjectiveFlags, ModelFlags, DataFlags):
    """Configuration of a run. All nats are per image."""

    def __post_init__(self) -> None:
        for name, bounds in _RANGES.items():
            if (value := getattr(self, name)) is not None:
                check_count(flag(name), value, *bounds)
        check_seed(flag("seed"), self.seed)
        # A string is a path as well, e.g. in a notebook.
        object.__setattr__(self, "data_root", Path(self.data_root))
        object.__setattr__(self, "data", os.fspath(self.data))
        # Paths need not exist: the data of a saved run may have moved.
        if self.data not in data.DATASETS and os.sep not in self.data and not os.path.exists(self.data):
            names = ", ".join(data.DATASETS)
            path = "the path of a folder of images or a file of arrays"
            raise UserError(f"Unknown data {self.data!r}; choose one of {names}, or {path}.")
        if self.channels not in (None, 1, 3):
            raise UserError(f"--channels is {self.channels}; choose 1 or 3.")
        if not all(0 < fraction < 1 for fraction in self.splits) or not math.isclose(sum(self.splits), 1.0):
            splits = " ".join(map(str, self.splits))
            raise UserError(f"--splits is {splits}; the three fractions must be positive and sum to 1.")
        for name in ("beta", "free_bits", "mmd_weight"):
            objectives.require_nonnegative(flag(name), getattr(self, name))
        if not 0 < self.learning_rate < 1e6:  # much larger learning rates overflow float32
            raise UserError(f"--learning-rate is {self.learning_rate}; it must be a positive number below 1e6.")
        check_decay(flag("ema"), self.ema)
        for name, choices in CHOICES.items():
            open_to_data = name in LEFT_TO_DATA and getattr(self, name) == AUTO
            if getattr(self, name) not in choices and not open_to_data:
                raise UserError(f"Unknown {name} {getattr(self, name)!r}; choose one of {', '.join(choices)}.")

    def check_data_root(self) -> None:
        """Raise UserError if a folder of data sets is given, but the data set is not read from a file."""
        dataset = data.DATASETS.get(self.data)
        if dataset is not None and not dataset.reads_root and self.data_root != Config.data_root:
            raise UserError(
                f"--data-root {self.data_root} is not read: --data {self.data} needs no files. Leave it out, or choose "
                f"other data; --data {self.data_root} uses your own."
            )

    def steps_per_epoch(self, num_images: int) -> int:
        """Return the number of steps per epoch for `num_images` training images."""
        return math.ceil(num_images / self.batch_size)

    def resolve(self) -> Config:
        """Return the configuration with the defaults that depend on the data set and the machine filled in.

        Raises:
            UserError: If CUDA is requested but not available, or a precision requires it.
        """
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: no CUDA device is available here; use --device cpu or auto.")
        auto = "cuda" if torch.cuda.is_available() else "cpu"
        device = auto if self.device == "auto" else self.device
        if self.precision == "tf32" and device != "cuda":
            raise UserError("--precision tf32 requires a CUDA device; on a CPU, choose float32 or bf16.")
        dataset = data.defaults(self.data)
        return replace(
            self,
            data=self.data if self.data in data.DATASETS else os.path.abspath(self.data),
            epochs=self.epochs or dataset.epochs,
            num_samples=self.num_samples or dataset.num_samples,
            device=device,
        )

    def execution(self, num_images: int) -> str | None:
        """Return how training steps are executed: ``compiled``, ``recorded``, or None to run the Pyro program.

        This depends only on the configuration and `num_images`, so that a resumed run continues in the same way.
        """
        if self.compile != "auto":
            return "compiled" if self.compile == "on" else None
        steps = (self.epochs or 0) * self.steps_per_epoch(num_images)
        return "compiled" if steps >= _COMPILED_STEPS else "recorded"

    def to_json(self) -> dict[str, Any]:
        """Return the configuration as JSON values, by field."""
        return asdict(self) | {"data_root": str(self.data_root), "splits": list(self.splits)}

    def to_flags(self) -> list[str]:
        """Return the arguments of fit.py that give this configuration. None and False give none, True only the flag."""
        arguments: list[str] = []
        for name, value in self.to_json().items():
            if value is not None and value is not False:
                values = [] if value is True else value if isinstance(value, list) else [value]
                arguments += [flag(name), *map(str, values)]
        return arguments


def from_groups(
    data: DataFlags,
    model: ModelFlags,
    objective: ObjectiveFlags,
    optimization: OptimizationFlags,
    evaluation: EvaluationFlags,
    runtime: RuntimeFlags,
) -> Config:
    """Return the configuration from the groups of flags of a command line, which are the headings of --help."""
    groups = (data, model, objective, optimization, evaluation, runtime)
    return Config(**{name: value for group in groups for name, value in vars(group).items()})


# Type of an argument of a script that is a whole configuration.
ConfigFlags = Annotated[Config, tyro.conf.arg(name="", constructor=from_groups)]
