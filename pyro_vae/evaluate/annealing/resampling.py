r"""Resampling of annealed particles within groups: sequential Monte Carlo (SMC).

Where the weights of a group of S particles have become uneven, S new particles are drawn from them in proportion to
their weights, and all get the mean weight of the group. Particles of negligible weight are thus dropped, and the others
are moved further by the transitions that follow, each copy by itself.

Given the particles, the expected sum of w f(u) over a group is the same before and after, for any function f, whether
or not the group is resampled. So the mean weight at the last temperature is unbiased for p(x) as without resampling,
and resampling may depend on the weights: Del Moral, Doucet, Jasra, "Sequential Monte Carlo samplers", JRSS B 2006
(https://arxiv.org/abs/cond-mat/0212648).

Particles of a group are dependent afterwards; their weights say nothing about the error of their mean. Groups are
independent, so the standard error is that of the mean weights of groups.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_vae.evaluate.annealing.states import PathState

_LEAST_ESS = 0.5  # effective sample size below which a group is resampled, relative to its size


def resample(point: PathState, log_w: Tensor, group_size: int) -> tuple[PathState, Tensor]:
    """Resample the groups whose weights are uneven, by systematic resampling.

    Args:
        point: Particles of K / S groups of S, in this order, for B images.
        log_w: Their log weights (K, B) in nats.
        group_size: Number of particles of a group, S.

    Returns:
        The particles and their log weights, all S weights of a resampled group being their mean.
    """
    groups = log_w.unflatten(0, (-1, group_size)).transpose(1, 2)  # (K / S, B, S)
    log_sum = groups.logsumexp(-1, keepdim=True)
    log_ess = 2 * log_sum - (2 * groups).logsumexp(-1, keepdim=True)
    chosen = log_ess < math.log(_LEAST_ESS * group_size)  # false (NaN) for a group without any weight
    if not chosen.any():
        return point, log_w
    copied = _systematic((groups - log_sum).exp().nan_to_num(1.0))
    own = torch.arange(group_size, device=log_w.device)
    places = torch.where(chosen, copied, own)
    first = torch.arange(0, len(log_w), group_size, device=log_w.device)
    rows = (places + first[:, None, None]).transpose(1, 2).flatten(0, 1)  # (K, B)
    columns = torch.arange(log_w.shape[1], device=log_w.device)
    weights = torch.where(chosen, log_sum - math.log(group_size), groups)
    return PathState(*(field[rows, columns] for field in point)), weights.transpose(1, 2).flatten(0, 1)


def _systematic(weights: Tensor) -> Tensor:
    """Return S indices in proportion to weights (..., S): those at S evenly spaced points with one random offset.

    Index i is returned floor(S w_i) or ceil(S w_i) times for normalized weights w, and S w_i times in expectation.
    """
    size = weights.shape[-1]
    ends = weights.cumsum(-1)
    ends = ends / ends[..., -1:]  # the last one is 1, above all points, whatever the rounding of the sum
    offset = torch.rand((*weights.shape[:-1], 1), dtype=weights.dtype, device=weights.device)
    points = (torch.arange(size, device=weights.device) + offset) / size
    largest = 1 - torch.finfo(weights.dtype).eps
    # The first end above a point: never that of a weight of 0, whose end is that of the index before.
    return torch.searchsorted(ends, points.clamp(max=largest).contiguous(), right=True)
