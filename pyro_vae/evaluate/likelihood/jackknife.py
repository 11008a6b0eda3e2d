r"""Jackknife corrections of the importance-weighted bound.

The bound L_K = E[log mean of K weights] is below log p(x) by a series in 1/K. Combining it with the bounds of all
subsets that leave out one weight, or two, cancels the first terms and leaves a bias of order K^-2 and K^-3. The results
are estimates, not bounds:

    JVI-1    K L_K - (K - 1) L_(K-1)
    JVI-2    K^2 / 2 L_K - (K - 1)^2 L_(K-1) + (K - 2)^2 / 2 L_(K-2)

where L_(K-1) and L_(K-2) are means over all subsets. Nowozin, "Debiasing Evidence Approximations: On
Importance-weighted Autoencoders and Jackknife Variational Inference", ICLR 2018
(https://openreview.net/forum?id=HyZoi-WRb).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LARGEST = 20  # weights whose pairs are summed directly
_TERMS = 8  # of the power series for all other pairs, whose ratio is below 1 / 400


def jackknife(log_w: Tensor) -> tuple[Tensor, Tensor]:
    """Return JVI-1 and JVI-2 of each image in nats, shape (B,) each.

    Args:
        log_w: Log importance weights in nats, float64, shape (K, B).

    Returns:
        Both estimates, NaN if undefined: for K below 2 (JVI-1) or 3 (JVI-2), or if the weights of a subset vanish in
        float64 relative to the one or two left out.
    """
    num_samples = len(log_w)
    log_sum = log_w.logsumexp(0)
    full = log_sum - math.log(num_samples)
    nan = torch.full_like(full, math.nan)
    if num_samples < 2:
        return nan, nan
    normalized = (log_w - log_sum).exp().sort(0, descending=True).values
    rest = _complements(normalized)  # (K, B)
    without_one = log_sum + rest.log().mean(0) - math.log(num_samples - 1)
    first = num_samples * full - (num_samples - 1) * without_one
    first = first.where(first.isfinite(), nan)
    if num_samples < 3:
        return first, nan
    pairs = num_samples * (num_samples - 1) / 2
    without_two = log_sum + _log_rest_of_pairs(normalized, rest) / pairs - math.log(num_samples - 2)
    weights = (num_samples**2 / 2, (num_samples - 1) ** 2, (num_samples - 2) ** 2 / 2)
    second = weights[0] * full - weights[1] * without_one + weights[2] * without_two
    return first, second.where(second.isfinite(), nan)


def _complements(normalized: Tensor) -> Tensor:
    """Return 1 - a for sorted normalized weights a (K, B); for the largest, as the sum of the others."""
    return torch.cat([normalized[1:].sum(0, keepdim=True), 1 - normalized[1:]])


def _log_rest_of_pairs(normalized: Tensor, rest: Tensor) -> Tensor:
    """Return the sum over pairs i < j of log(1 - a_i - a_j) for normalized weights a (K, B), in K log K operations.

    With c = a / (1 - a), each term is log(1 - a_i) + log(1 - a_j) + log(1 - c_i c_j). Pairs that include one of the 20
    largest weights are summed directly. For all others c_i c_j < 1 / 400, and log(1 - c_i c_j) is the power series
    -sum_n (c_i c_j)^n / n, whose terms sum over pairs to ((sum_i c_i^n)^2 - sum_i c_i^(2n)) / 2.
    """
    num_samples, top = len(normalized), min(_LARGEST, len(normalized))
    total = torch.zeros_like(normalized[0])
    for i in range(top):
        left = rest[i] - normalized[i + 1 :]
        if i == 0:  # the two largest may sum to nearly 1: add up the others to avoid cancellation
            left = torch.cat([normalized[2:].sum(0, keepdim=True), left[1:]])
        total = total + left.log().sum(0)
    small, log_rest = normalized[top:] / rest[top:], rest[top:].log()
    total = total + (num_samples - top - 1) * log_rest.sum(0)
    for n in range(1, _TERMS + 1):
        total = total - (small.pow(n).sum(0).square() - small.pow(2 * n).sum(0)) / (2 * n)
    return total
