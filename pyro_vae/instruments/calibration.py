r"""Simulation-based calibration: ranks of the latents of simulated images among samples from the guide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from pyro_vae import config, parallel
from pyro_vae.errors import check_count
from pyro_vae.evaluate import sbc_ranks
from pyro_vae.instruments.instrument import EvaluatedRun, Result
from pyro_vae.report import curves
from pyro_vae.trace import Batch

_NUM_DRAWS = 99  # samples from the guide per image, so that there are 100 ranks


@dataclass(frozen=True)
class Calibration:
    """Simulation-based calibration. --sbc-images writes calibration.nc and figures/calibration.png.

    The ranks, shape (units, simulated images), are uniformly distributed if the guide is the exact posterior.

    Args:
        sbc_images: Number of simulated images whose latents are ranked among samples from the guide. 0 disables it.
    """

    name: ClassVar[str] = "calibration"

    sbc_images: config.Count = 0

    @property
    def requested(self) -> bool:
        """Whether --sbc-images is set."""
        return self.sbc_images != 0

    def check(self, run: EvaluatedRun) -> None:
        """Raise UserError if the number is negative or log weights are undefined."""
        check_count("--sbc-images", self.sbc_images)
        run.check_density("--sbc-images")

    def measure(self, run: EvaluatedRun, seed: int) -> Result:
        """Rank the latents of simulated images."""
        program, template = run.fitted.program, Batch.of(run.test).expand(self.sbc_images)
        # One random stream for all simulated images: the first process alone draws them.
        found = parallel.on_first(lambda: sbc_ranks(program.model, program.guide, template, _NUM_DRAWS, seed=seed))
        figures = {"calibration": partial(curves.calibration, found, _NUM_DRAWS)}
        return Result(per_image={"ranks": found.T}, rows="unit", figures=figures)

    def table(self, summaries: Mapping[str, Mapping[str, Any]]) -> str:
        """Return an empty string: the ranks are shown in a figure."""
        return ""
