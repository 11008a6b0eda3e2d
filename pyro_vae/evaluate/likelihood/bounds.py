r"""Importance-weighted bounds with k particles, estimated from K weights, and standard errors of means.

    IWAE_k  =  mean over groups of k weights of (logsumexp(log w) - log k)

If k divides m and m divides K, the groups of k are nested in those of m, and IWAE_k <= IWAE_m by Jensen's inequality
for any weights. Otherwise the curve is nondecreasing only in expectation: if K is not a multiple of m, the trailing
weights that do not fill a group of m may still be in groups of k. Groups of 2 and 5 are not nested.

Burda, Grosse, Salakhutdinov, "Importance Weighted Autoencoders", ICLR 2016 (https://arxiv.org/abs/1509.00519).
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from pyro_vae.errors import UserError


def particle_counts(num_samples: int) -> list[int]:
    """Return the group sizes k = 1, 2, 5, 10, 50, 100, 500, ... below K, followed by K."""
    sizes = [1, 2, 5] + [step * 10**power for power in range(1, 10) for step in (1, 5)]
    return [k for k in sizes if k < num_samples] + [num_samples]


def iwae(log_w: Tensor, k: int) -> Tensor:
    """Estimate the bound with k particles from K weights.

    Args:
        log_w: Log importance weights in nats, shape (K, B).
        k: Group size, between 1 and K. Trailing weights that do not fill a group are dropped.

    Returns:
        IWAE_k of each group and image, shape (floor(K / k), B).

    Raises:
        ValueError: k is not between 1 and K.
    """
    if not 1 <= k <= len(log_w):
        raise UserError(f"k is {k}; it must be between 1 and {len(log_w)}, the number of weights.")
    groups = log_w[: len(log_w) // k * k].unflatten(0, (-1, k))
    return groups.logsumexp(1) - math.log(k)


def iwae_with_error(log_w: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return IWAE_k (B,), the mean of `iwae` over groups, and its standard error over groups (B,).

    The error of a single group is that of the delta method, sqrt(var(w) / k) / mean(w) over its k weights w, NaN for
    k = 1.
    """
    groups = iwae(log_w, k)
    num_groups = len(groups)
    error = groups.std(0) / math.sqrt(num_groups) if num_groups > 1 else relative_variance(log_w[:k]).sqrt()
    return groups.mean(0), error


def relative_variance(log_w: Tensor) -> Tensor:
    """Return (1/K) var(w) / mean(w)^2 (B,) of weights (K, B): by the delta method, the variance of log mean(w).

    The variance of the weights is the unbiased one, so that the result is NaN for K = 1.
    """
    num_samples = len(log_w)
    # K / ESS = mean(w^2) / mean(w)^2.
    inverse_ess = ((2 * log_w).logsumexp(0) - 2 * log_w.logsumexp(0)).exp()
    degrees_of_freedom = num_samples - 1 if num_samples > 1 else math.nan
    return ((inverse_ess - 1 / num_samples) * num_samples / degrees_of_freedom).clamp(min=0.0)


def standard_error(values: np.ndarray) -> float:
    """Return the standard error of the mean of values (N,); NaN if N = 1 or a value is non-finite."""
    finite = len(values) > 1 and np.isfinite(values).all()
    return float(values.std(ddof=1) / math.sqrt(len(values))) if finite else math.nan
