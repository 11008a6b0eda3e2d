r"""Pareto-smoothed importance sampling (PSIS) of importance weights, with ArviZ, and comparison of models.

PSIS models the tail of the weights of an image, the M = min(0.2 K, 3 sqrt(K)) largest of K, by a generalized Pareto
distribution above the largest weight u outside the tail,

    P(w > u + y | w > u)  =  (1 + k y / sigma)^(-1/k),

and replaces the sorted tail weights by its quantiles at (m - 1/2) / M, m = 1, ..., M, truncated at the largest weight.
The fitted shape k-hat estimates the tail index k of the distribution of the weights, whose moments are finite up to
order 1/k: the variance for k < 1/2, the mean for k < 1. Vehtari, Simpson, Gelman, Yao, Gabry, "Pareto Smoothed
Importance Sampling", JMLR 25 (2024) (https://arxiv.org/abs/1507.02646).

Inputs and outputs are NumPy arrays. ArviZ, version 0.2x (Python 3.11) or 1.x, is imported on use: with xarray, pandas
and matplotlib it takes longer to import than Pyro itself.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from pyro_vae.errors import UserError
from pyro_vae.evaluate.likelihood.bounds import standard_error
from pyro_vae.text import printable

_MIN_DRAWS = 30  # a tail of six: in one of five, the quartile that ArviZ 1.x uses is the minimum
_LARGEST_RATIO = 700.0  # log of the largest ratio of weights that float64 can represent
_DOMINANT = 30.0  # a weight this many nats above the next dominates the sum


class PSISResult(NamedTuple):
    """PSIS results of N images: log of the mean smoothed weight in nats, and k-hat, shape (N,) each."""

    log_mean: np.ndarray
    khat: np.ndarray


def psis(log_w: np.ndarray) -> PSISResult:
    """Smooth the tail of each image's importance weights, and return the log of their mean, and k-hat.

    Args:
        log_w: Log importance weights in nats, not normalized, shape (K, N).

    Returns:
        `log_mean` and `khat`. If k-hat is below 0.5 the variance of the weights is finite; above 0.7 the estimate is
        unreliable. k-hat is NaN if it is undefined: fewer than 30 draws, a tail of equal weights (an exact posterior,
        or a discrete one with ties), a weight that is NaN or +inf, or only zero weights. It is infinite if one weight
        dominates all others, so that no tail can be fitted. Without a fit, `log_mean` is that of the raw weights.

    Example:
        Weights with a Pareto tail of index 1/4, whose mean is 4/3:

        >>> import numpy as np
        >>> weights = 1 + np.random.default_rng(0).pareto(4.0, size=(10_000, 1))
        >>> result = psis(np.log(weights))
        >>> print(f"k-hat {result.khat[0]:.2f}, mean {np.exp(result.log_mean[0]):.2f}")
        k-hat 0.26, mean 1.33
    """
    with np.errstate(invalid="ignore"):  # NaN and +inf propagate to the result
        log_mean = np.logaddexp.reduce(log_w, 0) - math.log(len(log_w))
    khat = np.full(log_w.shape[1], np.nan)
    if len(log_w) < _MIN_DRAWS:
        return PSISResult(log_mean, khat)
    for image, column in enumerate(log_w.T):
        largest = column.max()
        if not np.isfinite(largest) or _equal_tail(column):
            continue
        log_sum, khat[image] = _fit(np.maximum(column - largest, -_LARGEST_RATIO))
        if np.isfinite(khat[image]):
            log_mean[image] = largest + log_sum - math.log(len(column))
    return PSISResult(log_mean, khat)


def khat_threshold(num_samples: int) -> float:
    """Return the largest k-hat at which K draws suffice, min(1 - 1 / log10 K, 0.7) (Vehtari et al., 2024)."""
    return min(1 - 1 / math.log10(num_samples), 0.7) if num_samples > 1 else math.nan


def count_khat(khat: np.ndarray, num_samples: int) -> tuple[int, int]:
    """Return how many of the k-hats (N,) from K draws exceed the threshold, and how many are defined."""
    return int((khat > khat_threshold(num_samples)).sum()), int((~np.isnan(khat)).sum())


def describe_khat(khat: np.ndarray, num_samples: int) -> str:
    """Return a one-line verdict on the k-hats (N,) from K draws."""
    bad, num_khat = count_khat(khat, num_samples)
    if num_khat == 0:
        return "k-hat is undefined: too few draws, or weights that are equal or non-finite"
    words = f"unreliable for {bad} of {num_khat} images" if bad else f"good for all {num_khat} images"
    missing = "" if num_khat == len(khat) else f", undefined for {len(khat) - num_khat}"
    return f"{words}{missing} (good: k-hat <= {khat_threshold(num_samples):.2f})"


def paired_differences(log_likelihoods: Mapping[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """Compare the log-likelihoods of models on the same held-out images.

    The standard error is that of a mean of N differences, with the divisor N - 1 in their variance as in all standard
    errors of this package.

    Args:
        log_likelihoods: {model: log p(x) of each image (N,)}, in nats.

    Returns:
        {model: (distance below the best model, standard error of this paired difference)}, in nats per image, sorted
        from best to worst. The best model has (0, 0). For N = 1 the other errors are NaN.

    Raises:
        ValueError: The log-likelihood of an image is NaN or infinite, whose mean ranks no model.
    """
    for name, values in log_likelihoods.items():
        if (nonfinite := ~np.isfinite(values)).any():
            index = int(nonfinite.argmax())
            raise UserError(
                f"log p(x) of image {index} under {printable(name)} is {values[index]}, so that the models cannot be "
                "compared; leave out the image, or the model."
            )
    order = sorted(log_likelihoods, key=lambda name: -log_likelihoods[name].mean())
    best = log_likelihoods[order[0]]
    differences = {name: best - log_likelihoods[name] for name in order[1:]}
    others = {name: (float(below.mean()), standard_error(below)) for name, below in differences.items()}
    return {order[0]: (0.0, 0.0), **others}


def is_arviz_1() -> bool:
    """Return whether ArviZ is 1.x, which has other names and sign conventions than 0.2x."""
    import arviz

    return int(arviz.__version__.split(".")[0]) >= 1


def _equal_tail(column: np.ndarray) -> bool:
    """Return whether the tail weights are equal up to the rounding error of float32 densities."""
    # The two versions of ArviZ round M differently: this is the shorter tail.
    tail = np.sort(column)[-math.floor(min(0.2 * len(column), 3 * math.sqrt(len(column)))) :]
    return bool(np.isfinite(tail).all() and np.ptp(tail) < 1e-6 * (1 + abs(tail[-1])))


def _fit(log_w: np.ndarray) -> tuple[float, float]:
    """Return the log of the sum of the smoothed weights of one image, and k-hat, given its log weights (K,).

    ArviZ 1.x takes log-likelihoods and negates them. Both versions return log weights whose exponentials sum to 1. With
    many tied weights ArviZ 1.x fits no tail: k-hat is then infinite if one weight dominates all others, else NaN.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ warns of a large k-hat, which is returned
        if is_arviz_1():
            from arviz_stats.base import array_stats

            normalized, khat = array_stats.psislw(-log_w)
        else:
            import arviz

            normalized, khat = arviz.psislw(log_w)
    if not np.isfinite(khat):
        second, first = np.partition(log_w, -2)[-2:]
        return math.nan, math.inf if first - second > _DOMINANT else math.nan
    smallest = log_w.argmin()  # below the tail: smoothing changes only its normalization
    return float(log_w[smallest] - normalized[smallest]), float(khat)
