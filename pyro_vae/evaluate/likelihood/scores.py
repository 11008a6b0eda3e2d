r"""Bounds on log p(x) and their errors, from one set of importance weights per image.

    ELBO    = mean_k log w_k = -(rate + distortion)
    IWAE_k  = mean over groups of k of (logsumexp - log k)
    log p(x) is estimated by IWAE_K, with all K weights: a lower bound in expectation.

All values are in nats. Where k divides the sizes above it and all divide K, groups lie inside groups and the curve
rises by Jensen's inequality, not only on average; 2 and 5 are no such pair.

Burda, Grosse, Salakhutdinov, "Importance Weighted Autoencoders", ICLR 2016 (https://arxiv.org/abs/1509.00519).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.evaluate.likelihood.diagnostics import psis
from pyro_vae.evaluate.likelihood.jackknife import jackknife
from pyro_vae.evaluate.likelihood.weights import Parts, log_weight_parts
from pyro_vae.trace import Data, Program, Reader

Array = np.ndarray


def ladder(num_samples: int) -> list[int]:
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


@dataclass(frozen=True)
class Scores:
    """Scores of N images, float64 arrays (N,) unless a shape is given; nats.

    `iwae` is (len(ladder), N), and `iwae_se` its standard error over groups, NaN for a single one.
    `relative_variance` is that of the estimate of p(x), (1/K) var(w) / mean(w)^2, which by the delta method is the
    variance of log p(x). `psis` is the Pareto-smoothed estimate of log p(x), `jvi1` and `jvi2` the jackknife-corrected
    ones; `khat` is NaN where it does not exist. A program without log weights has a distortion, and with a loss in the
    place of a likelihood a rate; all else is NaN, and `reason` says why.
    """

    num_samples: int
    elbo: Array
    rate: Array
    distortion: Array
    log_likelihood: Array
    relative_variance: Array
    ess: Array
    khat: Array
    psis: Array
    jvi1: Array
    jvi2: Array
    iwae: Array
    iwae_se: Array
    reason: str | None = None

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.elbo)

    @property
    def ladder(self) -> list[int]:
        """Group sizes of the rows of `iwae`."""
        return ladder(self.num_samples)

    @staticmethod
    def concatenate(scores: Iterable[Scores]) -> Scores:
        """Join the scores of several batches of images."""
        scores = list(scores)
        columns = {
            name: np.concatenate([getattr(part, name) for part in scores], axis=-1)
            for name in Scores.__dataclass_fields__
            if name not in ("num_samples", "reason")
        }
        return Scores(scores[0].num_samples, **columns, reason=scores[0].reason)


def score(
    model: Program,
    guide: Program,
    x: Data,
    num_samples: int,
    *,
    chunk: int | None = None,
    seed: int | None = None,
    reader: Reader | None = None,
) -> Scores:
    """Score a batch of images.

    Args:
        model: program of p(x, z).
        guide: program of q(z|x).
        x: images (B, ...), a tuple of the programs' arguments, or a `Batch`; the caller batches, so that K x N weights
            never exist at once.
        num_samples: K.
        chunk: as in `log_weight_parts`, like all that follows.
        seed: of the draws.
        reader: how the programs are read.

    Raises:
        ValueError: as `log_weight_parts`.
    """
    return reduce(log_weight_parts(model, guide, x, num_samples, chunk=chunk, seed=seed, reader=reader))


def reduce(parts: Parts) -> Scores:
    """Reduce the weights of a batch, (K, B), to scores of its images."""
    log_w = parts.log_weights
    num_samples = len(log_w)
    log_sum, log_sum_squares = log_w.logsumexp(0), (2 * log_w).logsumexp(0)
    ess = (2 * log_sum - log_sum_squares).exp()
    # (1/K) var(w) / mean(w)^2 with the unbiased variance, which does not exist for one weight.
    spare = num_samples - 1 if num_samples > 1 else math.nan
    relative_variance = (1 / ess - 1 / num_samples) * num_samples / spare
    groups = [iwae(log_w, k) for k in ladder(num_samples)]
    columns = {
        "elbo": log_w.mean(0),
        "rate": (parts.log_guide - parts.log_prior).mean(0),
        "distortion": -parts.log_likelihood.mean(0),
        "log_likelihood": log_sum - math.log(num_samples),
        "relative_variance": relative_variance.clamp(min=0.0),
        "ess": ess,
        "iwae": torch.stack([group.mean(0) for group in groups]),
        "iwae_se": torch.stack([_standard_error(group) for group in groups]),
    }
    columns["jvi1"], columns["jvi2"] = jackknife(log_w)
    arrays = {name: column.cpu().numpy() for name, column in columns.items()}
    smoothed = psis(log_w.cpu().numpy())
    return Scores(num_samples, **arrays, khat=smoothed.khat, psis=smoothed.log_mean, reason=parts.reason)


def _standard_error(groups: Tensor) -> Tensor:
    """Return the standard error of the mean over groups (G, B); with a single one there is none."""
    number = len(groups)
    return groups.std(0) / math.sqrt(number) if number > 1 else torch.full_like(groups[0], math.nan)
