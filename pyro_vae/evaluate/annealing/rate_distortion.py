r"""Rate-distortion curves of annealing from the prior.

On the path from the prior, f_b(z) = p(z) p(x|z)^b, take d(z) = -log p(x|z) as distortion. The chains of a run that has
stopped at temperature b, with one of them chosen in proportion to its weight, define a distribution q_b(z|x). With

    D = E[sum_k w_k d(z_k) / sum_k w_k],    R = -b D - E[log mean_k w_k],

its expected distortion is D, and its rate KL(q_b || p) is at most R: R is the divergence between the distributions of
all chains and the choice, with and without x, and that of the chosen z alone is smaller. A code with q_b as its encoder
and the prior p(z) therefore has distortion D at no more than R nats, and R bounds the rate of the optimal code of this
distortion from above. This holds for any number of chains and temperatures; the more, the closer R is to the rate of
f_b, which is optimal for this prior. At b = 1, R + D = -E[log mean w], the bound on -log p(x).

Huang, Cao, Grosse, "Evaluating lossy compression rates of deep generative models", ICML 2020
(https://arxiv.org/abs/2008.06653).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyro_vae.evaluate.annealing.schedules import interpolate

Array = np.ndarray

# Temperatures of a curve. Rates rise fast near b = 0.
CURVE_TEMPERATURES = np.linspace(0, 1, 21) ** 3


@dataclass(frozen=True)
class RateDistortion:
    """Rate and distortion of N images at the temperatures `CURVE_TEMPERATURES`, in nats.

    Attributes:
        rate: Upper bound, in expectation, on the rate, shape (21, N).
        distortion: Expected -log p(x|z), shape (21, N).
    """

    rate: Array
    distortion: Array

    @staticmethod
    def concatenate(curves: Iterable[RateDistortion]) -> RateDistortion:
        """Concatenate the curves of several batches of images."""
        curves = list(curves)
        rates, distortions = ([getattr(c, name) for c in curves] for name in ("rate", "distortion"))
        return RateDistortion(np.concatenate(rates, 1), np.concatenate(distortions, 1))


def rate_distortion(temperatures: Tensor, log_mean_w: Tensor, mean_log_ratio: Tensor) -> RateDistortion:
    """Compute the curve of a run from the prior.

    Values between two temperatures are interpolated linearly. Those belong to an encoder that uses one of the two at
    random, so that the rate remains an upper bound.

    Args:
        temperatures: Temperatures b_0, ..., b_T, shape (T + 1,).
        log_mean_w: Log of the mean weight at each of them, shape (T + 1, B).
        mean_log_ratio: Weighted mean of log p(x|z), shape (T + 1, B).
    """
    rate = temperatures.to(mean_log_ratio).unsqueeze(-1) * mean_log_ratio - log_mean_w
    points = torch.as_tensor(CURVE_TEMPERATURES, dtype=temperatures.dtype, device=temperatures.device)
    return RateDistortion(
        *(interpolate(points, temperatures, values).cpu().numpy() for values in (rate, -mean_log_ratio))
    )
