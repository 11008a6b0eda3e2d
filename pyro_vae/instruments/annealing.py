r"""Annealed importance sampling (AIS) of test images, and bidirectional Monte Carlo (BDMC) on simulated images.

AIS gives a lower bound on log p(x) in expectation. Its error on test images is unknown; on images that the model
simulates, whose posterior samples are exact, reverse AIS chains give an upper bound. The gap between the two bounds is,
in expectation, an upper bound on the error of either. Chains from the prior also bound the rate-distortion curve of the
model. The references are in `evaluate.annealing`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np

from pyro_vae import config, parallel
from pyro_vae.errors import UserError, check_count
from pyro_vae.evaluate import (
    CURVE_TEMPERATURES,
    AISConfig,
    AISResult,
    BDMCResult,
    ais,
    bdmc,
    standard_error,
)
from pyro_vae.instruments.batches import Part, batches, progress_bar
from pyro_vae.instruments.instrument import EvaluatedRun, Result, replace_nonfinite
from pyro_vae.report import rates
from pyro_vae.trace import Data


@dataclass(frozen=True)
class AnnealedImportanceSampling:
    """AIS of test images, with upper and lower bounds on simulated ones. --ais-temperatures writes annealing.nc.

    Args:
        ais_temperatures: Number of temperatures of annealed importance sampling (AIS). 0 disables it.
        chains: Number of chains per image.
        chains_per_group: Number of chains that are resampled together where their weights become uneven (sequential
            Monte Carlo). It must divide --chains; 1 resamples none. It helps with --ais-start prior.
        leapfrogs: Number of leapfrog steps per temperature.
        ais_start: Initial distribution of the chains. gaussian is fitted to each posterior in a pilot run, guide is
            q(z|x), prior is p(z), which adds a rate-distortion curve.
        temperature_schedule: Spacing of the temperatures. adaptive is set by a pilot run; sigmoid has more of them
            close to both ends.
    """

    name: ClassVar[str] = "annealing"

    ais_temperatures: config.Count = 0
    chains: config.Count = 16
    chains_per_group: config.Count = 1
    leapfrogs: config.Count = 2
    ais_start: Literal["gaussian", "guide", "prior"] = "gaussian"
    temperature_schedule: Literal["adaptive", "sigmoid", "linear"] = "adaptive"

    @property
    def requested(self) -> bool:
        """Whether --ais-temperatures is set."""
        return self.ais_temperatures != 0

    def ais_config(self, compiled: bool = False) -> AISConfig:
        """Return the settings of AIS that the flags specify.

        Args:
            compiled: Whether to evaluate log-densities with compiled graphs.

        Raises:
            UserError: If a flag is out of range; see `AISConfig`.
        """
        if self.chains_per_group < 1 or self.chains % self.chains_per_group:
            raise UserError(f"--chains-per-group is {self.chains_per_group}; it must divide --chains, {self.chains}.")
        return AISConfig(
            self.chains,
            self.ais_temperatures,
            self.leapfrogs,
            self.ais_start,
            self.temperature_schedule,
            compiled,
            self.chains_per_group,
        )

    def check(self, run: EvaluatedRun) -> None:
        """Raise UserError if a flag is out of range or log weights are undefined."""
        check_count("--ais-temperatures", self.ais_temperatures)
        self.ais_config()
        run.check_density("--ais-temperatures")

    def measure(self, run: EvaluatedRun, seed: int) -> Result:
        """Run AIS on the test images, and BDMC on as many simulated images."""
        ais_config = self.ais_config(compiled=run.fitted.execution == "compiled")
        return measure_ais(run.fitted.program, run.test, ais_config, seed)

    def table(self, summaries: Mapping[str, Mapping[str, Any]]) -> str:
        """Return an empty string: the results are columns of `scores_table`."""
        return ""


def measure_ais(program: Any, x: Data, ais_config: AISConfig, seed: int) -> Result:
    """Run AIS on test images, and BDMC on as many simulated images.

    Args:
        program: Object with ``model(x)`` and ``guide(x)``.
        x: Test images as the program observes them, shape (N, ...).
        ais_config: Settings of AIS.
        seed: Random seed of the chains and of the simulated images.

    Returns:
        Arrays of shape (N,): log p(x) of the test images and both bounds for the simulated images, in nats; effective
        sample size and acceptance rate of the test images. The numbers summarize them over images.
    """
    start = time.perf_counter()
    bar = progress_bar("annealing", "temperature")

    def anneal(part: Part) -> tuple[AISResult, BDMCResult]:
        images, batch_seed = part
        arguments = (program.model, program.guide, images, ais_config)
        return ais(*arguments, seed=batch_seed, progress=bar), bdmc(*arguments, seed=batch_seed, progress=bar)

    test_results, simulated_results = zip(*parallel.map_parts(anneal, batches(x, seed)), strict=True)
    test, simulated = AISResult.concatenate(test_results), BDMCResult.concatenate(simulated_results)
    per_image = {
        "log_likelihood": test.lower,
        "ess": test.ess,
        "acceptance": test.acceptance,
        "simulated_lower": simulated.forward.lower,
        "simulated_upper": simulated.backward.upper,
    }
    numbers: dict[str, Any] = {
        **vars(ais_config),
        "log_likelihood": float(test.lower.mean()),
        "log_likelihood_se": standard_error(test.lower),
        "estimator_se": float(np.linalg.norm(test.lower_se) / len(test.lower_se)),
        "ess_median": float(np.median(test.ess)),
        "acceptance": float(test.acceptance.mean()),
        "density_evaluations": test.evaluations,
        "gap": float(simulated.gap.mean()),
        "gap_se": standard_error(simulated.gap),
        "seconds": time.perf_counter() - start,
    }
    figures = {}
    if test.curve is not None:
        per_image |= {"rate": test.curve.rate, "distortion": test.curve.distortion}
        rate, distortion = test.curve.rate.mean(1), test.curve.distortion.mean(1)
        curve = {"b": CURVE_TEMPERATURES, "rate": rate, "distortion": distortion}
        numbers["rate_distortion"] = {
            name: [value if np.isfinite(value) else None for value in values.tolist()] for name, values in curve.items()
        }
        figures["annealed_rate_distortion"] = partial(rates.annealed_rate_distortion, rate, distortion)
    reasons = {}
    if not np.isfinite([*test.lower, *simulated.forward.lower]).all():
        reasons["annealing"] = "all chains of an image start outside the support of the prior; use --ais-start prior"
    return Result(replace_nonfinite(numbers), reasons, per_image=per_image, rows="temperature", figures=figures)
