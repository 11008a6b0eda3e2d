r"""Summary of a run: means over N test images with standard errors, in nats.

`log_likelihood_se` is the error over images, and `log_likelihood_mc_se` the Monte Carlo error for the given images. The
estimate of p(x_n) is the mean of K weights, so that by the delta method

    Var[log p_hat(x_n)]  ~  Var[p_hat(x_n)] / p(x_n)^2  ~  v_n = (1/K) var_k(w_nk) / mean_k(w_nk)^2,
    log_likelihood_mc_se  =  sqrt(sum_n v_n) / N.

For images of D pixels (channels included),

    bits_per_dim  =  -mean_n log p(x_n) / (D log 2)  [+ level_bits, if p is a density].

Levels of the data are 2^-level_bits apart. A density of uniformly dequantized data assigns each image the probability
of its cell, of volume 2^(-D level_bits). By Jensen's inequality, the sum is an upper bound on the bits per dimension of
that discrete model, which makes densities comparable with probabilities: Theis, van den Oord, Bethge, "A note on the
evaluation of generative models", ICLR 2016 (https://arxiv.org/abs/1511.01844).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from pyro_vae.evaluate.likelihood.bounds import standard_error
from pyro_vae.evaluate.likelihood.diagnostics import count_khat
from pyro_vae.evaluate.likelihood.scores import Scores

Array = np.ndarray

_NOT_FINITE = "an importance weight is zero or non-finite"
_NO_LEVELS = "real-valued data have no levels to encode"
_NO_KHAT = "k-hat needs at least 30 draws, with weights that are finite and not all equal"


def summarize(
    scores: Scores, active_units: int, num_pixels: int, *, density: bool = False, level_bits: int | None = 8
) -> dict[str, Any]:
    """Summarize the scores of N images.

    Args:
        scores: Scores of all test images.
        active_units: Number of active units over all latent sites.
        num_pixels: Number of elements of an image, D.
        density: Whether the likelihood is a density of dequantized data instead of a probability.
        level_bits: -log2 of the distance between two levels of the data: 8 for 8-bit pixels in [0, 1], 0 for counts,
            None for real-valued data, which have no levels.

    Returns:
        JSON-serializable values. Numbers are finite; undefined ones are None, with their reason in "reasons".
    """
    log_likelihood = _mean(scores.log_likelihood)
    bits = math.nan
    if level_bits is not None:
        bits = level_bits * density - log_likelihood.value / (num_pixels * math.log(2))
    numbers: dict[str, Any] = {
        "num_test_images": scores.num_images,
        "elbo": _mean(scores.elbo),
        "elbo_se": _error(scores.elbo),
        "log_likelihood": log_likelihood,
        "log_likelihood_se": _error(scores.log_likelihood),
        "log_likelihood_mc_se": _monte_carlo_error(scores),
        "psis": _mean(scores.psis),
        "jvi1": _jackknife(scores.jvi1, scores.log_likelihood),
        "jvi2": _jackknife(scores.jvi2, scores.log_likelihood),
        "density": density,
        "bits_per_dim": _Number(bits, _NOT_FINITE if level_bits is not None else _NO_LEVELS),
        "num_samples": scores.num_samples,
        "proposal": scores.proposal if scores.adapted.any() else "guide",
        "adapted_fraction": float(scores.adapted.mean()),
        "density_evaluations": float(scores.evaluations.mean()),
        "rate": _mean(scores.rate),
        "distortion": _mean(scores.distortion),
        "ess_median": _Number(float(np.median(scores.ess))),
        "khat_median": _median_khat(scores.khat),
        "khat_bad_fraction": _bad_fraction(scores),
        "active_units": active_units,
    }
    reasons: dict[str, str] = {}
    for name, number in numbers.items():
        if isinstance(number, _Number):
            numbers[name] = number.value if math.isfinite(number.value) else None
            if numbers[name] is None:  # a program without log weights lacks all numbers for one reason
                reasons[name] = scores.reason or number.reason
    bounds = {str(k): float(row.mean()) for k, row in zip(scores.particle_counts, scores.iwae, strict=True)}
    numbers["iwae"] = {k: value if math.isfinite(value) else None for k, value in bounds.items()}
    if None in numbers["iwae"].values():
        reasons["iwae"] = scores.reason or _NOT_FINITE
    if scores.not_adapted:
        reasons["proposal"] = scores.not_adapted
    return {**numbers, "reasons": reasons}


class _Number(NamedTuple):
    """A number, and why it is undefined if it is non-finite."""

    value: float
    reason: str = _NOT_FINITE


def _mean(values: Array) -> _Number:
    return _Number(float(values.mean()))


def _error(values: Array) -> _Number:
    reason = "a standard error needs at least two images" if len(values) == 1 else _NOT_FINITE
    return _Number(standard_error(values), reason)


def _monte_carlo_error(scores: Scores) -> _Number:
    """Return the delta-method standard error of the mean log p(x) over other samples for the same images."""
    reason = "the variance of the weights needs at least two samples" if scores.num_samples == 1 else _NOT_FINITE
    return _Number(math.sqrt(scores.relative_variance.sum()) / scores.num_images, reason)


def _jackknife(values: Array, log_likelihood: Array) -> _Number:
    finite = np.isfinite(log_likelihood).all()
    reason = (
        "the jackknife needs at least three samples, no two of which dominate all others" if finite else _NOT_FINITE
    )
    return _Number(float(values.mean()), reason)


def _median_khat(khat: Array) -> _Number:
    exists = ~np.isnan(khat)
    reason = "k-hat is infinite: one weight dominates all others" if np.isinf(khat).any() else _NO_KHAT
    return _Number(float(np.median(khat[exists])) if exists.any() else math.nan, reason)


def _bad_fraction(scores: Scores) -> _Number:
    bad, num_khat = count_khat(scores.khat, scores.num_samples)
    return _Number(bad / num_khat if num_khat else math.nan, _NO_KHAT)
