r"""What an instrument is: one way of measuring a fitted run, with its flags, its numbers and its figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Protocol

import numpy as np
from matplotlib.figure import Figure

from pyro_vae.errors import UserError
from pyro_vae.runs import Folder, Run, RunFolder
from pyro_vae.trace import Data


@dataclass(frozen=True)
class EvaluatedRun:
    """A fitted run, as an instrument reads it."""

    folder: RunFolder
    fitted: Run

    @cached_property
    def test(self) -> Data:
        """The test images as the program observes them, the same every time."""
        return self.fitted.observed("test")

    def check_density(self, flag: str) -> None:
        """Raise UserError, which names the flag, if the program has no log p(x, z) - log q(z|x)."""
        if self.fitted.no_density_reason:
            raise UserError(
                f"{flag} is of densities, and {self.folder.path} has none: {self.fitted.no_density_reason}."
            )


@dataclass(frozen=True)
class Result:
    """What an instrument has measured of one run.

    Args:
        numbers: JSON value for summary.json, under the name of the instrument: its numbers are finite or None. An
            empty mapping is left out of summary.json.
        reasons: {name: why it is None}.
        per_image: {name: (N,) or (rows, N)}, written as <name of the instrument>.nc.
        rows: name of the first dimension of two in `per_image`.
        figures: by the name of their files.
    """

    numbers: Any = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    per_image: Mapping[str, np.ndarray] = field(default_factory=dict)
    rows: str = "num_particles"
    figures: Mapping[str, Figure] = field(default_factory=dict)

    def write(self, folder: Folder, name: str) -> None:
        """Write the per-image arrays and the figures of the instrument of a name."""
        if self.per_image:
            folder.write_per_image(name, self.per_image, self.rows)
        for figure_name, figure in self.figures.items():
            folder.save_figure(figure_name, figure)


class Instrument(Protocol):
    """One way of measuring a fitted run: a frozen dataclass whose fields are flags of evaluate.py.

    `evaluate.py --help` shows the first line of its docstring: what is measured, which flag runs it, what it writes.
    """

    name: ClassVar[str]
    """The key in summary.json, and the name of the file of per-image results."""

    @property
    def requested(self) -> bool:
        """Whether the flags ask for this measurement."""

    def check(self, run: EvaluatedRun) -> None:
        """Raise UserError, before anything is measured, if a flag is out of range or the run lacks what is measured."""

    def measure(self, run: EvaluatedRun, seed: int) -> Result:
        """Measure a run; all noise comes from the seed."""

    def table(self, summaries: Mapping[str, Mapping[str, Any]]) -> str:
        """Lay out the measurements of several runs, {name: its summary.json}; empty if there is nothing to print."""


def replace_nonfinite(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Return numbers as JSON has them: None for NaN and infinity."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in numbers.items()}


def check_count(flag: str, value: int) -> None:
    """Raise UserError if a count that may be 0 is negative."""
    if value < 0:
        raise UserError(f"{flag} is {value}; it must be 0 or more.")
