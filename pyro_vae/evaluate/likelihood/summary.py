r"""The numbers of a run: means over test images with their errors, in nats."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from pyro_vae.evaluate.likelihood.bounds import standard_error
from pyro_vae.evaluate.likelihood.diagnostics import count_khat
from pyro_vae.evaluate.likelihood.scores import Scores

Array = np.ndarray

_NOT_FINITE = "an importance weight is zero or not finite"
_NO_LEVELS = "real numbers have no levels that a code could name"
_NO_KHAT = "k-hat needs 30 draws or more, of finite weights that are not equal"


def summarize(
    scores: Scores, active_units: int, num_pixels: int, *, density: bool = False, level_bits: int | None = 8
) -> dict[str, Any]:
    """Summarize scores of N images.

    Args:
        scores: of all test images.
        active_units: of all latent sites.
        num_pixels: of an image.
        density: whether the likelihood is a density over dequantized data rather than a probability.
        level_bits: -log2 of the distance of two levels of the data: 8 of 8-bit pixels in [0, 1], 0 of counts, None of
            real numbers, which have no levels. Bits per dimension are -log p(x) / (pixels log 2), and so many more for
            a density: they compare the two.

    Returns:
        JSON values. Numbers are finite; what does not exist is None, with its reason under "reasons".
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
            if numbers[name] is None:  # a program without log weights lacks the number for that reason
                reasons[name] = scores.reason or number.reason
    bounds = {str(k): float(row.mean()) for k, row in zip(scores.particle_counts, scores.iwae, strict=True)}
    numbers["iwae"] = {k: value if math.isfinite(value) else None for k, value in bounds.items()}
    if None in numbers["iwae"].values():
        reasons["iwae"] = scores.reason or _NOT_FINITE
    return {**numbers, "reasons": reasons}


class _Number(NamedTuple):
    """A number, and why it does not exist if it is not finite."""

    value: float
    reason: str = _NOT_FINITE


def _mean(values: Array) -> _Number:
    return _Number(float(values.mean()))


def _error(values: Array) -> _Number:
    reason = "a standard error over images needs two of them" if len(values) == 1 else _NOT_FINITE
    return _Number(standard_error(values), reason)


def _monte_carlo_error(scores: Scores) -> _Number:
    """Return the error of the mean log p(x) that other draws for the same images would make."""
    reason = "the variance of the weights needs two samples" if scores.num_samples == 1 else _NOT_FINITE
    return _Number(math.sqrt(scores.relative_variance.sum()) / scores.num_images, reason)


def _jackknife(values: Array, log_likelihood: Array) -> _Number:
    finite = np.isfinite(log_likelihood).all()
    reason = "a jackknife needs three samples, of which no two outweigh all others" if finite else _NOT_FINITE
    return _Number(float(values.mean()), reason)


def _median_khat(khat: Array) -> _Number:
    exists = ~np.isnan(khat)
    reason = "one weight outweighs all others: k-hat is infinite" if np.isinf(khat).any() else _NO_KHAT
    return _Number(float(np.median(khat[exists])) if exists.any() else math.nan, reason)


def _bad_fraction(scores: Scores) -> _Number:
    bad, num_khat = count_khat(scores.khat, scores.num_samples)
    return _Number(bad / num_khat if num_khat else math.nan, _NO_KHAT)
