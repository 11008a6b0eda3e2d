r"""Jackknife corrections of the importance-weighted bound.

The bound L_K = E[log mean of K weights] is below log p(x) by a series in 1/K. Leaving out one weight, and two, gives
combinations whose bias is of order K^-2 and K^-3; they are estimates, no bounds any more:

    JVI-1    K L_K - (K - 1) L_(K-1)
    JVI-2    K^2 / 2 L_K - (K - 1)^2 L_(K-1) + (K - 2)^2 / 2 L_(K-2)

with L_(K-1) and L_(K-2) the means over all subsets. Nowozin, "Debiasing Evidence Approximations: On Importance-weighted
Autoencoders and Jackknife Variational Inference", ICLR 2018 (https://openreview.net/forum?id=HyZoi-WRb).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LARGEST = 20  # weights whose pairs are summed one by one
_TERMS = 8  # of the series of all other pairs, whose ratio is below 1 / 400


def jackknife(log_w: Tensor) -> tuple[Tensor, Tensor]:
    """Return JVI-1 and JVI-2 of each image (B,), in nats.

    Args:
        log_w: log importance weights (K, B), float64.

    Returns:
        NaN where they do not exist: K below 2 and 3, or a subset without weight, since one or two outweigh all others
        beyond the digits of float64.
    """
    num_samples = len(log_w)
    log_sum = log_w.logsumexp(0)
    whole = log_sum - math.log(num_samples)
    nan = torch.full_like(whole, math.nan)
    if num_samples < 2:
        return nan, nan
    share = (log_w - log_sum).exp().sort(0, descending=True).values
    rest = _one_minus(share)  # (K, B)
    without_one = log_sum + rest.log().mean(0) - math.log(num_samples - 1)
    first = num_samples * whole - (num_samples - 1) * without_one
    first = first.where(first.isfinite(), nan)
    if num_samples < 3:
        return first, nan
    pairs = num_samples * (num_samples - 1) / 2
    without_two = log_sum + _log_rest_of_pairs(share, rest) / pairs - math.log(num_samples - 2)
    weights = (num_samples**2 / 2, (num_samples - 1) ** 2, (num_samples - 2) ** 2 / 2)
    second = weights[0] * whole - weights[1] * without_one + weights[2] * without_two
    return first, second.where(second.isfinite(), nan)


def _one_minus(share: Tensor) -> Tensor:
    """Return 1 - share (K, B) of sorted shares that sum to 1; for the largest, the sum of the others."""
    return torch.cat([share[1:].sum(0, keepdim=True), 1 - share[1:]])


def _log_rest_of_pairs(share: Tensor, rest: Tensor) -> Tensor:
    r"""Return the sum over pairs i < j of log(1 - a_i - a_j) for shares a (K, B), in K log K operations and not K^2.

    With c = a / (1 - a) it is log(1 - a_i) + log(1 - a_j) + log(1 - c_i c_j). Pairs with one of the largest shares
    are summed one by one; in all others c_i c_j < 1 / 400, and log(1 - c_i c_j) = -sum_n (c_i c_j)^n / n, whose sums
    over pairs are those of powers.
    """
    num_samples, top = len(share), min(_LARGEST, len(share))
    total = torch.zeros_like(share[0])
    for i in range(top):
        left = rest[i] - share[i + 1 :]
        if i == 0:  # the two largest may be all but 1: what is left is the sum of the others
            left = torch.cat([share[2:].sum(0, keepdim=True), left[1:]])
        total = total + left.log().sum(0)
    small, log_rest = share[top:] / rest[top:], rest[top:].log()
    total = total + (num_samples - top - 1) * log_rest.sum(0)
    for n in range(1, _TERMS + 1):
        total = total - (small.pow(n).sum(0).square() - small.pow(2 * n).sum(0)) / (2 * n)
    return total
