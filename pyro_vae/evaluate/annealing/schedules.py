r"""Temperatures 0 = b_0 < b_1 < ... < b_T = 1 of an annealing path.

The divergence between neighbors f_b and f_(b + h) is, for small steps h,

    KL = h^2 Var_b / 2,    Var_b = variance of log p(x, u) - log f_0(u) under f_b,

so that steps of equal divergence are proportional to 1 / sqrt(Var_b): equal parts of the thermodynamic length
\int sqrt(Var_b) db. With T such steps and exact samples at each temperature, log w has the least variance,
length^2 / T: Gelman, Meng, "Simulating normalizing constants", Statistical Science 1998 (https://doi.org/10.1214/ss/1028905934).
"""

from __future__ import annotations

import torch
from torch import Tensor

_SHARE_OF_BASE = 0.1  # of the steps, which no estimate of the variance can take away


def sigmoid(num_temperatures: int) -> Tensor:
    """Return temperatures b_0, ..., b_T, denser near both ends: the schedule of Grosse, Ghahramani, Adams (2015).

    They are sigmoid(c_t) for c_t evenly spaced from -4 to 4, rescaled to b_0 = 0 and b_T = 1.
    """
    b = torch.sigmoid(torch.linspace(-4, 4, num_temperatures + 1, dtype=torch.float64, device="cpu"))
    return (b - b[0]) / (b[-1] - b[0])


def linear(num_temperatures: int) -> Tensor:
    """Return evenly spaced temperatures b_0, ..., b_T."""
    return torch.linspace(0, 1, num_temperatures + 1, dtype=torch.float64, device="cpu")


FIXED_SCHEDULES = {"sigmoid": sigmoid, "linear": linear}
SCHEDULES = ("adaptive", *FIXED_SCHEDULES)


def place_temperatures(b: Tensor, variances: Tensor, num_temperatures: int) -> Tensor:
    """Return temperatures b_0, ..., b_T in steps of equal thermodynamic length, averaged over images.

    A tenth of the steps are spread as those of `b`. An image whose length is 0 or non-finite counts as if its steps
    were those of `b`.

    Args:
        b: Temperatures of a pilot run, shape (P + 1,).
        variances: Variances of log p(x, u) - log f_0(u) over its particles, shape (P + 1, B).
        num_temperatures: Number of steps, T.
    """
    deviations = variances.to(b).sqrt()
    lengths = 0.5 * (deviations[1:] + deviations[:-1]) * b.diff().unsqueeze(-1)
    total = lengths.sum(0)
    known = total.isfinite() & (total > 0)
    shares = torch.where(known, lengths / total, 1 / len(lengths)).mean(1)
    shares = (1 - _SHARE_OF_BASE) * shares + _SHARE_OF_BASE / len(shares)
    positions = torch.cat([shares.new_zeros(1), shares.cumsum(0)])
    found = interpolate(linear(num_temperatures), positions / positions[-1], b.unsqueeze(-1))[:, 0]
    found[0], found[-1] = 0.0, 1.0
    return found


def interpolate(points: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Interpolate linearly.

    Args:
        points: Points between the first and last knot, shape (N,).
        knots: Increasing positions, shape (P,).
        values: Values at the knots, shape (P, B).

    Returns:
        Values at the points, shape (N, B).
    """
    right = torch.searchsorted(knots, points).clamp(1, len(knots) - 1)
    weight = ((points - knots[right - 1]) / (knots[right] - knots[right - 1])).to(values).unsqueeze(-1)
    right = right.to(values.device)
    return values[right - 1] * (1 - weight) + values[right] * weight
