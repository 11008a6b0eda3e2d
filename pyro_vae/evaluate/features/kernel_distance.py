r"""Kernel distance between features of samples and data: the squared maximum mean discrepancy (MMD), without bias.

With the kernel k(a, b) = (a . b / F + 1)^3 of features with F elements, the squared distance of the distributions of a
and b is

    MMD^2  =  E k(a, a')  +  E k(b, b')  -  2 E k(a, b),

with a, a', b, b' independent. Means over all pairs of different images estimate it without bias for any number of
images, so that the estimate is negative about half of the time if both distributions are equal: Binkowski, Sutherland,
Arbel, Gretton, "Demystifying MMD GANs", ICLR 2018 (https://arxiv.org/abs/1801.01401), where features are those of an
Inception network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.errors import UserError

_GROUPS = 10  # of the jackknife


class KernelDistance(NamedTuple):
    """Estimate of MMD^2 and its standard error, NaN for fewer than three images."""

    value: float
    error: float


def kernel_distance(a: Tensor, b: Tensor) -> KernelDistance:
    """Estimate MMD^2 between features (N, F) and (M, F), with a standard error.

    Each set is split into ten groups. The error is the jackknife over subsets that leave out one group of each set,

        error^2  =  9/10 sum_g (MMD^2_(g) - mean_g MMD^2_(g))^2,

    which covers the randomness of both sets of images. It is too large by up to sqrt(2) where both distributions are
    equal, since the statistic is then degenerate (its first-order projection vanishes), and never too small on average.

    Args:
        a: Features of independent images.
        b: Features of other independent images.

    Raises:
        ValueError: N or M is below 2.
    """
    smallest = min(len(a), len(b))
    if smallest < 2:
        raise UserError(f"A kernel distance needs at least two images; there are {len(a)} and {len(b)}.")
    # A subset without one group of each set must contain two images of each.
    num_groups = next((g for g in range(min(_GROUPS, smallest), 1, -1) if smallest - -(-smallest // g) >= 2), 1)
    groups = [features.double().tensor_split(num_groups) for features in (a, b)]
    sums = [_sums(x, y) for x, y in ((groups[0], groups[0]), (groups[1], groups[1]), (groups[0], groups[1]))]
    sizes = [torch.tensor([len(part) for part in parts], dtype=torch.float64) for parts in groups]
    diagonals = [torch.stack([_self_kernel(part).sum() for part in parts]).cpu() for parts in groups]

    def squared_mmd(kept: Tensor) -> float:
        """Return the unbiased estimate from some groups of both sets."""
        n, m = (size[kept].sum() for size in sizes)
        within = [
            (total[kept][:, kept].sum() - diagonal[kept].sum()) / (number * (number - 1))
            for total, diagonal, number in zip(sums[:2], diagonals, (n, m), strict=True)
        ]
        return float(within[0] + within[1] - 2 * sums[2][kept][:, kept].sum() / (n * m))

    everything = torch.arange(num_groups)
    value = squared_mmd(everything)
    if num_groups < 2:
        return KernelDistance(value, math.nan)
    left_out = torch.tensor([squared_mmd(everything[everything != group]) for group in everything])
    variance = (num_groups - 1) * left_out.double().var(correction=0)
    return KernelDistance(value, math.sqrt(variance))


def _sums(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Return the sums of the kernel between groups (G, G), on the CPU; no group pair needs memory after its sum."""
    return torch.stack([torch.stack([_kernel(x, y).sum() for y in b]) for x in a]).cpu()


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _self_kernel(a: Tensor) -> Tensor:
    return (a.square().mean(1) + 1) ** 3
