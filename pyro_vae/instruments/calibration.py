r"""Simulation-based calibration: ranks of the latents of simulated images among draws from the guide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pyro_vae import config
from pyro_vae.evaluate import sbc_ranks
from pyro_vae.instruments.instrument import EvaluatedRun, Result, check_count
from pyro_vae.report import curves
from pyro_vae.trace import Batch

_NUM_DRAWS = 99  # from the guide, among which a latent has one of 100 ranks


@dataclass(frozen=True)
class Calibration:
    """Ranks (units, simulated images), uniform where the guide is the posterior, and their figure."""

    name: ClassVar[str] = "calibration"

    calibrate: config.Count = 0
    """Rank the latents of so many simulated images among draws from the guide (0: do not)."""

    def __post_init__(self) -> None:
        check_count("--calibrate", self.calibrate)

    @property
    def requested(self) -> bool:
        """Whether there are images to simulate."""
        return self.calibrate > 0

    def check(self, run: EvaluatedRun) -> None:
        """Refuse a run without densities."""
        run.check_density("--calibrate")

    def measure(self, run: EvaluatedRun, seed: int) -> Result:
        """Rank the latents of simulated images."""
        program, template = run.fitted.program, Batch.of(run.test).expand(self.calibrate)
        ranks = sbc_ranks(program.model, program.guide, template, _NUM_DRAWS, seed=seed)
        figures = {"calibration": curves.calibration(ranks, _NUM_DRAWS)}
        return Result(per_image={"ranks": ranks.T}, rows="unit", figures=figures)

    def table(self, summaries: Mapping[str, Mapping[str, Any]]) -> str:
        """Return nothing: the ranks are drawn."""
        return ""
