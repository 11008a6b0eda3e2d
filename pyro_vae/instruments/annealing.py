r"""Annealed importance sampling of test images, and bounds from both sides on images of the model."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
from tqdm import tqdm

from pyro_vae import config
from pyro_vae.evaluate import Annealed, Annealing, Bidirectional, ais, bdmc, standard_error
from pyro_vae.instruments.batches import batches
from pyro_vae.instruments.instrument import EvaluatedRun, Result, check_count, finite
from pyro_vae.trace import Data


@dataclass(frozen=True)
class AnnealedSampling:
    """Annealed importance sampling, with bounds from both sides. --ais-temperatures writes annealing.nc.

    Args:
        ais_temperatures: Number of temperatures of annealed importance sampling (AIS). 0 disables it.
        chains: Number of chains per image.
        leapfrogs: Number of leapfrog steps per temperature.
        ais_start: Initial distribution of the chains. guide is q(z|x), prior is p(z).
        temperature_schedule: Spacing of the temperatures. sigmoid has more of them close to both ends.
    """

    name: ClassVar[str] = "annealing"

    ais_temperatures: config.Count = 0
    chains: config.Count = 16
    leapfrogs: config.Count = 5
    ais_start: Literal["guide", "prior"] = "guide"
    temperature_schedule: Literal["sigmoid", "linear"] = "sigmoid"

    @property
    def asked(self) -> bool:
        """Whether there are temperatures."""
        return self.ais_temperatures != 0

    def settings(self, compiled: bool = False) -> Annealing:
        """Return how to anneal.

        Raises:
            UserError: see `Annealing`.
        """
        return Annealing(
            self.chains, self.ais_temperatures, self.leapfrogs, self.ais_start, self.temperature_schedule, compiled
        )

    def check(self, run: EvaluatedRun) -> None:
        """Refuse flags out of range, and a run without densities."""
        check_count("--ais-temperatures", self.ais_temperatures)
        self.settings()
        run.check_density("--ais-temperatures")

    def measure(self, run: EvaluatedRun, seed: int) -> Result:
        """Anneal the test images."""
        settings = self.settings(compiled=run.fitted.graph == "compiled")
        return measure_annealing(run.fitted.program, run.test, settings, seed)

    def table(self, summaries: Mapping[str, Mapping[str, Any]]) -> str:
        """Return nothing: see `scores_table`."""
        return ""


def measure_annealing(program: Any, x: Data, settings: Annealing, seed: int) -> Result:
    """Anneal test images, and as many images of the model's own from both sides.

    Args:
        program: an object with ``model(x)`` and ``guide(x)``.
        x: test images (N, ...) as the program observes them.
        settings: how to anneal.
        seed: of all noise.

    Returns:
        Arrays (N,) in nats, and their means with standard errors over images.
    """
    start = time.perf_counter()
    bar = partial(tqdm, desc="annealing", unit="temperature", disable=None, leave=False)
    found, both = [], []
    for images, own in batches(x, seed):
        arguments = (program.model, program.guide, images, settings)
        found.append(ais(*arguments, seed=own, progress=bar))
        both.append(bdmc(*arguments, seed=own, progress=bar))
    annealed, sides = Annealed.concatenate(found), Bidirectional.concatenate(both)
    per_image = {
        "log_likelihood": annealed.lower,
        "ess": annealed.ess,
        "acceptance": annealed.acceptance,
        "simulated_lower": sides.forward.lower,
        "simulated_upper": sides.backward.upper,
    }
    numbers = {
        **vars(settings),
        "log_likelihood": float(annealed.lower.mean()),
        "log_likelihood_se": standard_error(annealed.lower),
        "ess_median": float(np.median(annealed.ess)),
        "acceptance": float(annealed.acceptance.mean()),
        "gap": float(sides.gap.mean()),
        "gap_se": standard_error(sides.gap),
        "seconds": time.perf_counter() - start,
    }
    return Result(finite(numbers), per_image=per_image)
