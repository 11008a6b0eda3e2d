r"""Importance-weighted bounds with k particles, estimated from K weights, and standard errors of means.

    IWAE_k  =  mean over groups of k weights of (logsumexp(log w) - log k)

If each k divides the larger ones and K, groups are nested and the curve is nondecreasing by Jensen's inequality for any
weights, not only in expectation. Groups of 2 and 5 are not nested.

Burda, Grosse, Salakhutdinov, "Importance Weighted Autoencoders", ICLR 2016 (https://arxiv.org/abs/1509.00519).
"""

from __future__ import annotations

import math

import numpy as np
import torch
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


def error_over_groups(groups: Tensor) -> Tensor:
    """Return the standard error (B,) of the mean over groups (G, B); NaN if G = 1."""
    num_groups = len(groups)
    return groups.std(0) / math.sqrt(num_groups) if num_groups > 1 else torch.full_like(groups[0], math.nan)


def standard_error(values: np.ndarray) -> float:
    """Return the standard error of the mean of values (N,); NaN if N = 1 or a value is non-finite."""
    finite = len(values) > 1 and np.isfinite(values).all()
    return float(values.std(ddof=1) / math.sqrt(len(values))) if finite else math.nan
