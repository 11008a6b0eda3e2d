r"""The numbers of a run: means over test images with their errors, in nats."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyro_vae.evaluate.likelihood.diagnostics import good_khat
from pyro_vae.evaluate.likelihood.scores import Scores

_BITS = 8  # of a grey level, the interval in which a dequantized pixel lies


def summary(scores: Scores, active_units: int, num_pixels: int, *, density: bool = False) -> dict[str, Any]:
    """Summarise scores of N images.

    Args:
        scores: of all test images.
        active_units: of all latent sites.
        num_pixels: of an image.
        density: whether the likelihood is a density over dequantized 8-bit pixels in [0, 1] rather than a probability.
            Bits per dimension are -log p(x) / (pixels log 2), and 8 more for a density: they compare the two.

    Returns:
        JSON values. Numbers are finite; what does not exist is None, with its reason under "reasons".
    """
    bad = scores.khat > good_khat(scores.num_samples)
    exists = ~np.isnan(scores.khat)
    log_likelihood = float(scores.log_likelihood.mean())
    numbers: dict[str, Any] = {
        "num_test_images": scores.num_images,
        "elbo": float(scores.elbo.mean()),
        "elbo_se": standard_error(scores.elbo),
        "log_likelihood": log_likelihood,
        "log_likelihood_se": standard_error(scores.log_likelihood),
        "log_likelihood_mc_se": math.sqrt(scores.relative_variance.sum()) / scores.num_images,
        "psis": float(scores.psis.mean()),
        "jvi1": float(scores.jvi1.mean()),
        "jvi2": float(scores.jvi2.mean()),
        "density": density,
        "bits_per_dim": _BITS * density - log_likelihood / (num_pixels * math.log(2)),
        "num_samples": scores.num_samples,
        "rate": float(scores.rate.mean()),
        "distortion": float(scores.distortion.mean()),
        "ess_median": float(np.median(scores.ess)),
        "khat_median": float(np.median(scores.khat[exists])) if exists.any() else math.nan,
        "khat_bad_fraction": float(bad[exists].mean()) if exists.any() else math.nan,
        "active_units": active_units,
    }
    missing = [name for name, value in numbers.items() if isinstance(value, float) and not math.isfinite(value)]
    numbers.update(dict.fromkeys(missing))
    reasons = {name: _reason(name, scores) for name in missing}
    bounds = {str(k): float(row.mean()) for k, row in zip(scores.ladder, scores.iwae, strict=True)}
    numbers["iwae"] = {k: value if math.isfinite(value) else None for k, value in bounds.items()}
    if None in numbers["iwae"].values():
        reasons["iwae"] = scores.reason or _NOT_FINITE
    return {**numbers, "reasons": reasons}


def standard_error(values: np.ndarray) -> float:
    """Return the standard error of the mean over images (N,); NaN for a single one, or one that is not finite."""
    finite = len(values) > 1 and np.isfinite(values).all()
    return float(values.std(ddof=1) / math.sqrt(len(values))) if finite else math.nan


def _reason(name: str, scores: Scores) -> str:
    if scores.reason:
        return scores.reason
    if name == "khat_median" and np.isinf(scores.khat).any():
        return "one weight outweighs all others: k-hat is infinite"
    if name.startswith("khat"):
        return "k-hat needs 30 draws or more, of finite weights that are not equal"
    if name.endswith("likelihood_mc_se") and scores.num_samples == 1:
        return "the variance of the weights needs two samples"
    if name.startswith("jvi") and np.isfinite(scores.log_likelihood).all():
        return "a jackknife needs three samples, of which no two outweigh all others"
    if name in ("elbo_se", "log_likelihood_se") and scores.num_images == 1:
        return "a standard error over images needs two of them"
    return _NOT_FINITE


_NOT_FINITE = "an importance weight is zero or not finite"
