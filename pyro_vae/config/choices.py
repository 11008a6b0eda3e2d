r"""What the flags may say, and how the command line shows it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from pyro_vae import data
from pyro_vae.config import components
from pyro_vae.infer import schedules
from pyro_vae.infer.precision import PRECISIONS

# What each flag may say; the tables themselves, so that a part added to one from outside is known at once.
CHOICES: dict[str, Collection[str]] = {
    "binarize": data.BINARIZATIONS,
    "prior": components.PRIORS,
    "posterior": components.POSTERIORS,
    "likelihood": components.LIKELIHOODS,
    "net": components.NETS,
    "objective": components.OBJECTIVES,
    "optimizer": components.OPTIMIZERS,
    "schedule": schedules.SCHEDULES,
    "on_nonfinite": ("stop", "rollback"),
    "device": ("auto", "cpu", "cuda"),
    "compile": ("auto", "on", "off"),
    "precision": PRECISIONS,
}
# What the likelihood and the binarization are by default: what suits the data, see `adapt_to_data`.
AUTO = "auto"
LEFT_TO_DATA = ("likelihood", "binarize")


def flag(name: str) -> str:
    """Return the flag of a field of the configuration."""
    return "--" + name.replace("_", "-")


def one_of(field: str) -> Any:
    """Return the choices of a field for its flag, whose default a constructor would show as a list."""
    return tyro.conf.arg(
        constructor=Literal[(AUTO,) * (field in LEFT_TO_DATA) + tuple(CHOICES[field])],  # type: ignore[call-overload]
        help_behavior_hint=lambda default: "(default: {})".format(default.strip("[]'")),
    )


Count = Annotated[int, tyro.conf.arg(metavar="N")]
OptionalCount = Annotated[int | None, tyro.conf.arg(metavar="N")]
DirPath = Annotated[Path, tyro.conf.arg(metavar="DIR")]
OptionalDirPath = Annotated[Path | None, tyro.conf.arg(metavar="DIR")]
Device = Annotated[str, one_of("device")]
