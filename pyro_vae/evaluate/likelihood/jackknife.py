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

    JVI-2 multiplies bounds by K^2 / 2, and with them their rounding errors: 1e-13 nats become 0.2 at K = 2e6. Only the
    differences D_1 = L_(K-1) - L_K and D_2 = L_(K-2) - L_K are therefore computed, without the offset L_K. The
    coefficients of the bounds sum to 1, and D_2 = 2 D_1 + E (see `_excess_of_pairs`), so that

        JVI-1  =  L_K - (K - 1) D_1,    JVI-2  =  L_K - (2K - 3) D_1 + (K - 2)^2 / 2 E.

    Args:
        log_w: Log importance weights in nats, float64, shape (K, B).

    Returns:
        Both estimates, NaN if undefined: for K below 2 (JVI-1) or 3 (JVI-2), or if the weights of a subset vanish in
        float64 relative to the one or two left out.
    """
    num_samples = len(log_w)
    full = log_w.logsumexp(0) - math.log(num_samples)
    nan = torch.full_like(full, math.nan)
    if num_samples < 2:
        return nan, nan
    normalized = log_w.softmax(0).sort(0, descending=True).values
    log_rest = _log_complements(normalized)
    difference = (log_rest - math.log1p(-1 / num_samples)).mean(0)
    first = full - (num_samples - 1) * difference
    first = first.where(first.isfinite(), nan)
    if num_samples < 3:
        return first, nan
    excess = _excess_of_pairs(normalized, log_rest)
    second = full - (2 * num_samples - 3) * difference + (num_samples - 2) ** 2 / 2 * excess
    return first, second.where(second.isfinite(), nan)


def _log_complements(normalized: Tensor) -> Tensor:
    """Return log(1 - a) for sorted normalized weights a (K, B); for the largest, from the sum of the others."""
    return torch.cat([normalized[1:].sum(0, keepdim=True).log(), (-normalized[1:]).log1p()])


def _excess_of_pairs(normalized: Tensor, log_rest: Tensor) -> Tensor:
    """Return E = D_2 - 2 D_1 (B,) for normalized weights a (K, B), in K log K operations.

    With c = a / (1 - a), log(1 - a_i - a_j) = log(1 - a_i) + log(1 - a_j) + log(1 - c_i c_j). The first two terms give
    2 D_1, so that E is the mean over pairs i < j of log(1 - c_i c_j), minus its value for equal weights,
    log(1 - 1 / (K - 1)^2). Pairs that include one of the 20 largest weights are summed directly. For all others
    c_i c_j < 1 / 400, and log(1 - c_i c_j) is the power series -sum_n (c_i c_j)^n / n, whose terms sum over pairs to
    ((sum_i c_i^n)^2 - sum_i c_i^(2n)) / 2.
    """
    num_samples, top = len(normalized), min(_LARGEST, len(normalized))
    odds = normalized / log_rest.exp()
    # The two largest may sum to nearly 1: add up the others to avoid cancellation.
    total = normalized[2:].sum(0).log() - log_rest[0] - log_rest[1]
    for i in range(top):
        total = total + (-odds[i] * odds[max(i + 1, 2) :]).log1p().sum(0)
    small = odds[top:]
    for n in range(1, _TERMS + 1):
        total = total - (small.pow(n).sum(0).square() - small.pow(2 * n).sum(0)) / (2 * n)
    pairs = num_samples * (num_samples - 1) / 2
    return total / pairs - math.log1p(-1 / (num_samples - 1) ** 2)
