r"""The interface of instruments, which measure a fitted run: flags, numbers, per-image arrays and figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from pyro_vae.errors import UserError
from pyro_vae.runs import Folder, Run, RunFolder
from pyro_vae.trace import Data

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class EvaluatedRun:
    """A fitted run and its folder, the input of an instrument."""

    folder: RunFolder
    fitted: Run

    @cached_property
    def test(self) -> Data:
        """Test images as the program observes them."""
        return self.fitted.observed("test")

    def check_density(self, flag: str) -> None:
        """Raise UserError, which names the flag, if the log weights log p(x, z) - log q(z|x) are undefined."""
        if self.fitted.no_density_reason:
            raise UserError(
                f"{flag} requires log weights, and {self.folder.path} has none: {self.fitted.no_density_reason}."
            )


@dataclass(frozen=True)
class Result:
    """The result of an instrument for one run.

    Args:
        numbers: JSON value for summary.json, under the name of the instrument. Its numbers are finite or None. An
            empty mapping is omitted.
        reasons: Reason for each None, by name.
        per_image: Arrays for <name of the instrument>.nc by name, shape (N,) or (rows, N).
        rows: Name of the first of two dimensions in `per_image`.
        figures: Functions that draw figures, by file name without the suffix. They are called when all numbers have
            been written.
    """

    numbers: Any = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    per_image: Mapping[str, np.ndarray] = field(default_factory=dict)
    rows: str = "num_particles"
    figures: Mapping[str, Callable[[], Figure]] = field(default_factory=dict)

    def write(self, folder: Folder, name: str) -> None:
        """Write the per-image arrays to a folder, under the name of the instrument."""
        if self.per_image:
            folder.write_per_image(name, self.per_image, self.rows)

    def draw(self, folder: Folder) -> None:
        """Write the figures to a folder."""
        for name, draw in self.figures.items():
            with folder.drawing(name):
                folder.save_figure(name, draw())


class Instrument(Protocol):
    """A measurement of fitted runs: a frozen dataclass whose fields are flags of evaluate.py.

    `evaluate.py --help` shows the first line of its docstring, which states the measurement, the flag that requests it
    and the files that it writes.
    """

    name: ClassVar[str]
    """Key in summary.json, and name of the file of per-image results."""

    @property
    def requested(self) -> bool:
        """Whether the flags request this measurement."""

    def check(self, run: EvaluatedRun) -> None:
        """Raise UserError if a flag is out of range or the run does not support the measurement; called first."""

    def measure(self, run: EvaluatedRun, seed: int) -> Result:
        """Measure a run. The result depends on the random seed only, not on the global random state."""

    def table(self, summaries: Mapping[str, Mapping[str, Any]]) -> str:
        """Format the results of several runs, given summary.json by name; empty if there is nothing to print."""


def replace_nonfinite(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Replace NaN and infinity, which JSON does not support, by None."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in numbers.items()}
