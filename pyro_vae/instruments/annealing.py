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
from pyro_vae.evaluate import AISConfig, AISResult, BDMCResult, ais, bdmc, standard_error
from pyro_vae.instruments.batches import batches
from pyro_vae.instruments.instrument import EvaluatedRun, Result, check_count, replace_nonfinite
from pyro_vae.trace import Data


@dataclass(frozen=True)
class AnnealedImportanceSampling:
    """Annealed importance sampling; its columns stand in the table of the scores."""

    name: ClassVar[str] = "annealing"

    temperatures: config.Count = 0
    """Anneal over so many temperatures (0: do not anneal)."""
    chains: config.Count = 16
    """Chains of each image."""
    leapfrogs: config.Count = 5
    """Leapfrog steps between two temperatures."""
    anneal_from: Literal["guide", "prior"] = "guide"
    """Where the path begins."""
    path: Literal["sigmoid", "linear"] = "sigmoid"
    """How the temperatures are spaced."""

    def __post_init__(self) -> None:
        check_count("--temperatures", self.temperatures)
        if self.requested:
            self.ais_config()  # refuses the other flags before anything is scored

    @property
    def requested(self) -> bool:
        """Whether there are temperatures."""
        return self.temperatures > 0

    def ais_config(self, compiled: bool = False) -> AISConfig:
        """Return how to anneal.

        Raises:
            UserError: see `AISConfig`.
        """
        return AISConfig(self.chains, self.temperatures, self.leapfrogs, self.anneal_from, self.path, compiled)

    def check(self, run: EvaluatedRun) -> None:
        """Refuse a run without densities."""
        run.check_density("--temperatures")

    def measure(self, run: EvaluatedRun, seed: int) -> Result:
        """Anneal the test images."""
        ais_config = self.ais_config(compiled=run.fitted.execution == "compiled")
        return measure_ais(run.fitted.program, run.test, ais_config, seed)

    def table(self, summaries: Mapping[str, Mapping[str, Any]]) -> str:
        """Return nothing: see `scores_table`."""
        return ""


def measure_ais(program: Any, x: Data, ais_config: AISConfig, seed: int) -> Result:
    """Anneal test images, and as many images of the model's own from both sides.

    Args:
        program: an object with ``model(x)`` and ``guide(x)``.
        x: test images (N, ...) as the program observes them.
        ais_config: how to anneal.
        seed: of all noise.

    Returns:
        Arrays (N,) in nats, and their means with standard errors over images.
    """
    start = time.perf_counter()
    bar = partial(tqdm, desc="annealing", unit="temperature", disable=None, leave=False)
    test_results, simulated_results = [], []
    for images, batch_seed in batches(x, seed):
        arguments = (program.model, program.guide, images, ais_config)
        test_results.append(ais(*arguments, seed=batch_seed, progress=bar))
        simulated_results.append(bdmc(*arguments, seed=batch_seed, progress=bar))
    test, simulated = AISResult.concatenate(test_results), BDMCResult.concatenate(simulated_results)
    per_image = {
        "log_likelihood": test.lower,
        "ess": test.ess,
        "acceptance": test.acceptance,
        "simulated_lower": simulated.forward.lower,
        "simulated_upper": simulated.backward.upper,
    }
    numbers = {
        **vars(ais_config),
        "log_likelihood": float(test.lower.mean()),
        "log_likelihood_se": standard_error(test.lower),
        "ess_median": float(np.median(test.ess)),
        "acceptance": float(test.acceptance.mean()),
        "gap": float(simulated.gap.mean()),
        "gap_se": standard_error(simulated.gap),
        "seconds": time.perf_counter() - start,
    }
    return Result(replace_nonfinite(numbers), per_image=per_image)
