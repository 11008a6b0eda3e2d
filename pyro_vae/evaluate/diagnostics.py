r"""What ArviZ says of importance weights: the Pareto k-hat, its verdict, and the results as netCDF.

Vehtari, Simpson, Gelman, Yao, Gabry, "Pareto Smoothed Importance Sampling", JMLR 25 (2024)
(https://arxiv.org/abs/1507.02646). Numpy in, numpy out, on both lines of ArviZ: 0.2x (Python 3.11) and 1.x.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import arviz
import numpy as np

_MIN_DRAWS = 30  # a tail of six: with five, ArviZ 1.x cannot tell the first quartile from the minimum
_LARGEST_RATIO = 700.0  # log of the largest ratio of weights that float64 can hold


def pareto_khat(log_w: np.ndarray) -> np.ndarray:
    """Fit the tail of each image's importance weights.

    Args:
        log_w: log importance weights (K, N), not normalised.

    Returns:
        k-hat (N,): below 0.5 the variance of the weights is finite, above 0.7 the estimate is unreliable.
        NaN where it does not exist: fewer than 30 draws, equal weights (an exact posterior), or weights of which
        one is NaN or +inf or all are zero. Infinite where one weight outweighs the others beyond floating point.
    """
    khat = np.full(log_w.shape[1], np.nan)
    if len(log_w) < _MIN_DRAWS:
        return khat
    for image, column in enumerate(log_w.T):
        largest = column.max()
        if not np.isfinite(largest) or _equal_tail(column):
            continue
        khat[image] = _fit(np.maximum(column - largest, -_LARGEST_RATIO))
    return khat


def good_khat(num_samples: int) -> float:
    """Return the largest k-hat at which K draws suffice, min(1 - 1 / log10 K, 0.7) (Vehtari et al., 2024)."""
    return min(1 - 1 / math.log10(num_samples), 0.7) if num_samples > 1 else math.nan


def verdict(khat: np.ndarray, num_samples: int) -> str:
    """Say in words what the k-hats (N,) mean."""
    if np.isnan(khat).all():
        return "k-hat does not exist: too few draws or equal weights"
    bad = int((khat > good_khat(num_samples)).sum())
    if bad == 0:
        return f"good for all {len(khat)} images"
    return f"unreliable for {bad} of {len(khat)} images (k-hat > {good_khat(num_samples):.2f})"


def write_netcdf(per_image: Mapping[str, np.ndarray], path: Path) -> None:
    """Write per-image results, {name: (N,) or (k, N)}, as the constant data of an ArviZ file.

    `arviz.from_netcdf(path)` reads it.
    """
    dims = {name: ["image"] if values.ndim == 1 else ["num_particles", "image"] for name, values in per_image.items()}
    groups: Any = {"constant_data": dict(per_image)}
    dataset = arviz.from_dict(groups, dims=dims) if _arviz_1() else arviz.from_dict(**groups, dims=dims)
    dataset.to_netcdf(str(path))


def _arviz_1() -> bool:
    return int(arviz.__version__.split(".")[0]) >= 1


def _equal_tail(column: np.ndarray) -> bool:
    """Whether the largest weights that the fit would use do not differ by more than rounding."""
    tail = np.sort(column)[-math.ceil(min(0.2 * len(column), 3 * math.sqrt(len(column)))) :]
    return bool(np.ptp(tail) < 1e-9) if np.isfinite(tail).all() else False


def _fit(log_w: np.ndarray) -> float:
    """k-hat of one image, of the weights as they are: ArviZ 1.x takes log-likelihoods and negates them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ warns of a large k, which is what is asked for
        if _arviz_1():
            from arviz_stats.base import array_stats

            _, khat = array_stats.psislw(-log_w)
        else:
            _, khat = arviz.psislw(log_w)
    # ArviZ 1.x has no fit where one weight outweighs the rest by more than floating point holds; 0.2x says inf.
    return math.inf if np.isnan(khat) else float(khat)
