r"""What ArviZ says of importance weights: their smoothed mean, k-hat and verdict.

Vehtari, Simpson, Gelman, Yao, Gabry, "Pareto Smoothed Importance Sampling", JMLR 25 (2024)
(https://arxiv.org/abs/1507.02646). Numpy in, numpy out, on both lines of ArviZ: 0.2x (Python 3.11) and 1.x. It is
imported on use: with xarray, pandas and matplotlib it takes longer to import than Pyro itself.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

_MIN_DRAWS = 30  # a tail of six: with five, ArviZ 1.x cannot tell the first quartile from the minimum
_LARGEST_RATIO = 700.0  # log of the largest ratio of weights that float64 can hold
_DOMINANT = 30.0  # a weight that outweighs the next by more is all there is to the sum


class PSISResult(NamedTuple):
    """Pareto-smoothed importance sampling of N images: log of the mean weight, in nats, and k-hat, (N,) each."""

    log_mean: np.ndarray
    khat: np.ndarray


def psis(log_w: np.ndarray) -> PSISResult:
    """Fit the tail of each image's importance weights, and average them with that tail smoothed.

    Args:
        log_w: log importance weights (K, N), not normalized.

    Returns:
        k-hat: below 0.5 the variance of the weights is finite, above 0.7 the estimate is unreliable. NaN where it
        does not exist: fewer than 30 draws, a tail of equal weights (an exact posterior, or ties of a discrete
        one), or weights of which one is NaN or +inf or all are zero. Infinite where one weight outweighs all
        others beyond a fit. Where there is no fit, the mean is that of the weights as they are.
    """
    with np.errstate(invalid="ignore"):  # NaN and +inf say so in the result
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
    """Return how many of the k-hats (N,) of K draws are too large, and how many exist."""
    return int((khat > khat_threshold(num_samples)).sum()), int((~np.isnan(khat)).sum())


def describe_khat(khat: np.ndarray, num_samples: int) -> str:
    """Say in words what the k-hats (N,) mean."""
    bad, num_khat = count_khat(khat, num_samples)
    if num_khat == 0:
        return "k-hat does not exist: too few draws, or weights that are equal or not finite"
    words = f"unreliable for {bad} of {num_khat} images" if bad else f"good for all {num_khat} images"
    missing = "" if num_khat == len(khat) else f", without k-hat for {len(khat) - num_khat}"
    return f"{words}{missing} (good: k-hat <= {khat_threshold(num_samples):.2f})"


def paired_differences(log_likelihoods: Mapping[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """Compare models on the same images.

    The log-likelihoods are of held-out images, which ArviZ's comparison pairs as it does those of
    leave-one-out cross-validation.

    Args:
        log_likelihoods: {model: log p(x) of each image (N,)}, in nats.

    Returns:
        {model: (how far it is below the best, standard error over images)}, nats per image, best model first.
    """
    import arviz

    num_images = len(next(iter(log_likelihoods.values())))
    # Under numbers: pandas refuses names that are no Unicode, as those of files may be.
    names = {f"m{index}": name for index, name in enumerate(log_likelihoods)}
    data = {key: _elpd(log_likelihoods[name]) for key, name in names.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of models too alike to tell, which the standard error says too
        # Pseudo-BMA: the method of the weights, which are not used, that does not exponentiate densities.
        extra: Any = {"round_to": "none"} if is_arviz_1() else {"ic": "loo"}
        table = arviz.compare(data, method="pseudo-BMA", **extra)
    rows = {names[key]: (abs(row["elpd_diff"]) / num_images, row["dse"] / num_images) for key, row in table.iterrows()}
    return {name: (float(difference), float(error)) for name, (difference, error) in rows.items()}


def _elpd(values: np.ndarray) -> Any:
    import arviz
    import xarray

    num_images = len(values)
    total, error = float(values.sum()), float(math.sqrt(num_images * values.var()))
    points = xarray.DataArray(values, dims="image")
    if is_arviz_1():
        return arviz.ELPDData(
            elpd=total,
            se=error,
            p=math.nan,
            n_samples=1,
            n_data_points=num_images,
            scale="log",
            warning=False,
            good_k=0.7,
            elpd_i=points,
        )
    fields: dict[str, Any] = {
        "elpd_loo": total,
        "se": error,
        "p_loo": math.nan,
        "n_samples": 1,
        "n_data_points": num_images,
    }
    fields |= {"warning": False, "loo_i": points, "scale": "log"}
    return arviz.ELPDData(data=list(fields.values()), index=list(fields))


def is_arviz_1() -> bool:
    """Whether ArviZ is of the 1.x line, whose names and signs are others."""
    import arviz

    return int(arviz.__version__.split(".")[0]) >= 1


def _equal_tail(column: np.ndarray) -> bool:
    """Whether the weights of the tail that is fitted differ by no more than the rounding of float32 densities."""
    # The shorter of the two tails that the lines of ArviZ take.
    tail = np.sort(column)[-math.floor(min(0.2 * len(column), 3 * math.sqrt(len(column)))) :]
    return bool(np.isfinite(tail).all() and np.ptp(tail) < 1e-6 * (1 + abs(tail[-1])))


def _fit(log_w: np.ndarray) -> tuple[float, float]:
    """Log of the sum of smoothed weights of one image, and k-hat, of the weights as they are.

    ArviZ 1.x takes log-likelihoods and negates them; both lines return weights that sum to 1. Where many weights are
    tied 1.x has no fit: k-hat is infinite if one weight outweighs all others, else NaN.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ warns of a large k, which is what is asked for
        if is_arviz_1():
            from arviz_stats.base import array_stats

            normalized, khat = array_stats.psislw(-log_w)
        else:
            import arviz

            normalized, khat = arviz.psislw(log_w)
    if not np.isfinite(khat):
        second, first = np.partition(log_w, -2)[-2:]
        return math.nan, math.inf if first - second > _DOMINANT else math.nan
    smallest = log_w.argmin()  # below the tail, where smoothing changes nothing but the normalization
    return float(log_w[smallest] - normalized[smallest]), float(khat)
