r"""Choices of the flags, and their presentation on the command line."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from pyro_vae import data
from pyro_vae.config import components
from pyro_vae.infer import schedules
from pyro_vae.infer.precision import PRECISIONS

# Choices of each flag. These are the live tables, so that components registered by users are accepted.
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
# Default of the likelihood and the binarization, which `adapt_to_data` replaces by a choice that suits the data.
AUTO = "auto"
LEFT_TO_DATA = ("likelihood", "binarize")


def flag(name: str) -> str:
    """Return the command-line flag of a field of `Config`."""
    return "--" + name.replace("_", "-")


def one_of(field: str) -> Any:
    """Return the tyro argument of a field with choices, with the default as a word; tyro would show a list."""
    return tyro.conf.arg(
        constructor=Literal[(AUTO,) * (field in LEFT_TO_DATA) + tuple(CHOICES[field])],  # type: ignore[call-overload]
        help_behavior_hint=lambda default: "(default: {})".format(default.strip("[]'")),
    )


MAX_SEEDS = 10_000  # each is a program in memory

Count = Annotated[int, tyro.conf.arg(metavar="N")]
OptionalCount = Annotated[int | None, tyro.conf.arg(metavar="N")]
DirPath = Annotated[Path, tyro.conf.arg(metavar="DIR")]
OptionalDirPath = Annotated[Path | None, tyro.conf.arg(metavar="DIR")]
Device = Annotated[str, one_of("device")]
