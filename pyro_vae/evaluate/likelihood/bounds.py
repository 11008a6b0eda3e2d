r"""The importance-weighted bound of k particles from K weights, and standard errors of means.

    IWAE_k  =  mean over groups of k of (logsumexp - log k)

Where k divides the sizes above it and all divide K, groups lie inside groups and the curve rises by Jensen's
inequality, not only on average; 2 and 5 are no such pair.

Burda, Grosse, Salakhutdinov, "Importance Weighted Autoencoders", ICLR 2016 (https://arxiv.org/abs/1509.00519).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from pyro_vae.errors import UserError


def particle_counts(num_samples: int) -> list[int]:
    """Return the sizes k = 1, 2, 5, 10, 50, 100, 500, ... up to K, and K itself."""
    sizes = [1, 2, 5] + [step * 10**power for power in range(1, 10) for step in (1, 5)]
    return [k for k in sizes if k < num_samples] + [num_samples]


def iwae(log_w: Tensor, k: int) -> Tensor:
    """Estimate the bound of k particles from K weights.

    Args:
        log_w: log importance weights (K, B).
        k: group size, at most K; weights beyond the last whole group are left out.

    Returns:
        IWAE_k of each image in each of floor(K / k) groups, (groups, B).
    """
    if not 1 <= k <= len(log_w):
        raise UserError(f"k is {k}; it must lie between 1 and the {len(log_w)} weights.")
    groups = log_w[: len(log_w) // k * k].unflatten(0, (-1, k))
    return groups.logsumexp(1) - math.log(k)


def error_over_groups(groups: Tensor) -> Tensor:
    """Return the standard error (B,) of the mean over groups (G, B); with a single one there is none, NaN."""
    num_groups = len(groups)
    return groups.std(0) / math.sqrt(num_groups) if num_groups > 1 else torch.full_like(groups[0], math.nan)


def standard_error(values: np.ndarray) -> float:
    """Return the standard error of the mean over images (N,); NaN for a single one, or one that is not finite."""
    finite = len(values) > 1 and np.isfinite(values).all()
    return float(values.std(ddof=1) / math.sqrt(len(values))) if finite else math.nan
