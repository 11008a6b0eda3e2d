r"""Estimators of log p(x) side by side, on the same images: accuracy, k-hat and cost.

All are lower bounds in expectation, except for PSIS and the jackknife, which correct a bias. Differences are paired
with the last estimator, the longest annealing. The cost counts evaluations of log p(x, z), with or without gradient.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
from torch import Tensor

from pyro_vae import parallel
from pyro_vae.evaluate import (
    AISConfig,
    adapted_log_weights,
    ais,
    iwae,
    jackknife,
    local_log_weights,
    log_weights,
    psis,
    standard_error,
)
from pyro_vae.instruments.batches import Part, batches, progress_bar
from pyro_vae.instruments.instrument import EvaluatedRun, Result, replace_nonfinite
from pyro_vae.report.estimators import accuracy_and_cost
from pyro_vae.report.tables import format_number, format_table, format_with_error
from pyro_vae.text import printable
from pyro_vae.trace import Batch, CompiledBackend, EagerBackend

_GUIDE_SAMPLES = (1000, 5000, 50_000)
_LOCAL_STEPS, _LOCAL_PARTICLES, _LOCAL_SAMPLES = 500, 10, 5000
_ADAPTED_SAMPLES = (1000, 5000)
_FITTED_START = (10, 25, 50)  # temperatures of annealing from a fitted Gaussian
_FROM_PRIOR, _GROUP_SIZE = 100, 8  # temperatures of annealing from the prior, and chains resampled together (SMC)
_FROM_GUIDE = (100, 500, 1000)  # and of annealing from the guide, with five leapfrog steps


class Estimate(NamedTuple):
    """Estimates of log p(x) of B images in nats, with their cost.

    Attributes:
        values: Estimates (B,).
        khat: Tail index of the weights (B,), NaN where there is none.
        evaluations: Number of density evaluations per image.
        seconds: Time of the batch.
    """

    values: np.ndarray
    khat: np.ndarray
    evaluations: float
    seconds: float


@dataclass(frozen=True)
class EstimatorComparison:
    """Estimators of log p(x), their accuracy and cost. --estimators writes estimators.nc and figures/estimators.png.

    Args:
        estimators: Compare importance sampling from the guide and from adapted proposals with annealing, on all test
            images. Annealing with 1,000 temperatures takes most of the time.
    """

    name: ClassVar[str] = "estimators"

    estimators: bool = False

    @property
    def requested(self) -> bool:
        """Whether --estimators is set."""
        return self.estimators

    def check(self, run: EvaluatedRun) -> None:
        """Raise UserError if log weights are undefined."""
        run.check_density("--estimators")

    def measure(self, run: EvaluatedRun, seed: int) -> Result:
        """Estimate log p(x) of the test images with every estimator."""
        bar, compiled = progress_bar("estimators", "batch"), run.fitted.execution == "compiled"
        program = run.fitted.program

        def estimate(part: Part) -> dict[str, Estimate]:
            return dict(estimates(program, *part, compiled=compiled))

        parts = list(parallel.map_parts(estimate, bar(list(batches(run.test, seed)))))
        sizes = [len(next(iter(part.values())).values) for part in parts]
        rows = {name: _joined([part[name] for part in parts], sizes) for name in parts[0]}
        *_, best = rows.values()
        numbers = {name: _summary(row, best.values) for name, row in rows.items()}
        return Result(
            numbers,
            per_image={name.replace(",", "").replace(" ", "_"): row.values for name, row in rows.items()},
            figures={"estimators": partial(accuracy_and_cost, numbers)},
        )

    def table(self, summaries: Mapping[str, Mapping[str, Any]]) -> str:
        """Return one table for each run."""
        columns = [("", -28), ("log p(x)", 10), ("difference", 16), ("k-hat bad", 10), ("evaluations", 12), ("s", 8)]
        tables = []
        for name, summary in summaries.items():
            lines = [
                [
                    estimator,
                    format_number(row["log_likelihood"]),
                    format_with_error(row["difference"], row["difference_se"]),
                    format_number(row["khat_bad_fraction"], ".0%"),
                    f"{row['density_evaluations']:,.0f}",
                    f"{row['seconds']:.1f}",
                ]
                for estimator, row in summary[self.name].items()
            ]
            tables.append("\n".join([f"{printable(name)}, nats per image", *format_table(columns, lines)]))
        return "\n\n".join(tables)


def estimates(program: Any, images: Batch, seed: int | None, *, compiled: bool) -> Iterator[tuple[str, Estimate]]:
    """Yield the names of all estimators and their estimates for a batch of images."""
    model, guide = program.model, program.guide
    clock = _Clock()
    for number in _GUIDE_SAMPLES:
        backend = CompiledBackend() if compiled else EagerBackend()
        log_w = log_weights(model, guide, images, number, seed=seed, backend=backend)
        smoothed = psis(log_w.cpu().numpy())
        seconds = clock.lap()
        yield f"guide, {number:,}", Estimate(_log_mean(log_w), smoothed.khat, number, seconds)
        if number == 5000:
            yield "PSIS, 5,000", Estimate(smoothed.log_mean, smoothed.khat, number, seconds)
            jvi2 = jackknife(log_w)[1].cpu().numpy()
            yield "JVI-2, 5,000", Estimate(jvi2, smoothed.khat, number, seconds + clock.lap())
    optimization = _LOCAL_STEPS * _LOCAL_PARTICLES
    for family, title in (("full", "local Gaussian"), ("flow", "local flow")):
        weights = local_log_weights(
            model,
            guide,
            images,
            [family],
            num_steps=_LOCAL_STEPS,
            num_particles=_LOCAL_PARTICLES,
            num_samples=_LOCAL_SAMPLES,
            seed=seed,
        )
        yield f"{title}, {_LOCAL_SAMPLES:,}", _estimate(weights[family], optimization + _LOCAL_SAMPLES, clock)
    for proposal in ("laplace", "adaptive"):
        for number in _ADAPTED_SAMPLES:
            log_w, cost = adapted_log_weights(
                model, guide, images, number, proposal=proposal, seed=seed, compiled=compiled
            )
            yield f"{proposal}, {number:,}", _estimate(log_w, float(cost.double().mean()), clock)
    settings = {f"AIS, fitted start, {T}": AISConfig(num_temperatures=T, compiled=compiled) for T in _FITTED_START}
    settings |= {
        f"{title} from the prior, {_FROM_PRIOR}": AISConfig(
            num_temperatures=_FROM_PRIOR, start="prior", compiled=compiled, group_size=size
        )
        for title, size in (("AIS", 1), ("SMC", _GROUP_SIZE))
    }
    settings |= {
        f"AIS from the guide, {T:,}": AISConfig(16, T, 5, start="guide", schedule="sigmoid", compiled=compiled)
        for T in _FROM_GUIDE
    }
    for name, config in settings.items():
        found = ais(model, guide, images, config, seed=seed)
        yield name, Estimate(found.lower, np.full(len(images), np.nan), found.evaluations, clock.lap())


class _Clock:
    """Seconds since the last lap."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def lap(self) -> float:
        start, self._start = self._start, time.perf_counter()
        return self._start - start


def _estimate(log_w: Tensor, evaluations: float, clock: _Clock) -> Estimate:
    return Estimate(_log_mean(log_w), psis(log_w.cpu().numpy()).khat, evaluations, clock.lap())


def _log_mean(log_w: Tensor) -> np.ndarray:
    return iwae(log_w, len(log_w))[0].cpu().numpy()


def _joined(parts: list[Estimate], sizes: list[int]) -> Estimate:
    """Join the batches of an estimator."""
    values, khat = (np.concatenate([getattr(part, name) for part in parts]) for name in ("values", "khat"))
    evaluations = float(np.average([part.evaluations for part in parts], weights=sizes))
    return Estimate(values, khat, evaluations, sum(part.seconds for part in parts))


def _summary(row: Estimate, best: np.ndarray) -> dict[str, float | None]:
    exists = ~np.isnan(row.khat)
    difference = row.values - best
    return replace_nonfinite(
        {
            "log_likelihood": float(row.values.mean()),
            "log_likelihood_se": standard_error(row.values),
            "difference": float(difference.mean()),
            "difference_se": standard_error(difference),
            "khat_bad_fraction": float((row.khat[exists] > 0.7).mean()) if exists.any() else float("nan"),
            "density_evaluations": row.evaluations,
            "seconds": row.seconds,
        }
    )
