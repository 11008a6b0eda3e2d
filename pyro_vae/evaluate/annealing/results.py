r"""Results of annealed importance sampling: log weights, bounds on log p(x), and effective sample sizes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from pyro_vae.evaluate.annealing.rate_distortion import RateDistortion
from pyro_vae.evaluate.likelihood.bounds import relative_variance

Array = np.ndarray


@dataclass(frozen=True)
class AISResult:
    """Result of K chains for each of N images.

    Attributes:
        log_w: Log importance weights in nats, float64, shape (K, N). With groups of S chains that are resampled, the
            logs of their mean weights, shape (K / S, N): all rows are independent.
        acceptance: Mean acceptance probability per image, shape (N,).
        evaluations: Number of density evaluations for each image, with gradients, of the pilot run and these chains.
        curve: Rates and distortions along the path, of forward chains from the prior; otherwise None.
    """

    log_w: Array
    acceptance: Array
    evaluations: int
    curve: RateDistortion | None = None

    @property
    def lower(self) -> Array:
        """Log of the mean of w (N,): with forward chains, a lower bound on log p(x) in expectation."""
        return np.logaddexp.reduce(self.log_w, 0) - math.log(len(self.log_w))

    @property
    def upper(self) -> Array:
        """Minus the log of the mean of 1/w (N,): with backward chains, an upper bound on log p(x) in expectation."""
        return math.log(len(self.log_w)) - np.logaddexp.reduce(-self.log_w, 0)

    @property
    def ess(self) -> Array:
        """Effective sample size (sum w)^2 / sum w^2 (N,), between 1 and the number of rows of `log_w`."""
        return np.exp(2 * np.logaddexp.reduce(self.log_w, 0) - np.logaddexp.reduce(2 * self.log_w, 0))

    @property
    def lower_se(self) -> Array:
        """Standard errors of `lower` (N,) by the delta method over the rows of `log_w`; NaN if there is only one."""
        return relative_variance(torch.from_numpy(self.log_w)).sqrt().numpy()

    @staticmethod
    def concatenate(results: Iterable[AISResult]) -> AISResult:
        """Concatenate the results of several batches of images."""
        results = list(results)
        log_w = np.concatenate([result.log_w for result in results], 1)
        curves = [result.curve for result in results if result.curve is not None]
        curve = RateDistortion.concatenate(curves) if curves else None
        return AISResult(
            log_w, np.concatenate([result.acceptance for result in results]), results[0].evaluations, curve
        )


@dataclass(frozen=True)
class BDMCResult:
    """Lower and upper bounds on log p(x) of N simulated images, in nats.

    Attributes:
        forward: Chains from f_0 to the posterior; `forward.lower` is the lower bound.
        backward: Chains from the posterior to f_0; `backward.upper` is the upper bound.
    """

    forward: AISResult
    backward: AISResult

    @property
    def gap(self) -> Array:
        """Upper minus lower bound (N,): in expectation, an upper bound on the error of either one."""
        return self.backward.upper - self.forward.lower

    @staticmethod
    def concatenate(results: Iterable[BDMCResult]) -> BDMCResult:
        """Concatenate the results of several batches of images."""
        results = list(results)
        sides = ([getattr(result, side) for result in results] for side in ("forward", "backward"))
        return BDMCResult(*map(AISResult.concatenate, sides))
