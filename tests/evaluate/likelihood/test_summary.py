"""Degenerate weights, from the weights to the summary of a run: six documented results, without warnings.

Warnings are errors in this suite. Every null has an entry in "reasons".
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from pyro_vae.evaluate import LogWeightTerms, scores_from_terms, summarize

NOT_FINITE = "an importance weight is zero or non-finite"
NO_KHAT = "k-hat needs at least 30 draws, with weights that are finite and not all equal"
DOMINANT = "k-hat is infinite: one weight dominates all others"
# A single image has no standard error over images.
ALONE = dict.fromkeys(("elbo_se", "log_likelihood_se"), "a standard error needs at least two images")
KHAT = ("khat_median", "khat_bad_fraction")
ALL = ("elbo", "distortion", "log_likelihood", "log_likelihood_mc_se", "psis", "jvi1", "jvi2", "bits_per_dim", "iwae")


def numbers_of(log_w: np.ndarray) -> dict[str, Any]:
    """Summarize one image with log weights (K,), as if they consisted only of the likelihood."""
    column = torch.as_tensor(log_w, dtype=torch.float64, device="cpu").unsqueeze(1)
    zeros = torch.zeros_like(column)
    found = summarize(scores_from_terms(LogWeightTerms(column, zeros, zeros)), active_units=1, num_pixels=7)
    json.dumps(found, allow_nan=False)
    return found


def normal(number: int = 200, first: float | None = None) -> np.ndarray:
    log_w = np.random.default_rng(0).standard_normal(number)
    if first is not None:
        log_w[0] = first
    return log_w


def log_mean(log_w: np.ndarray) -> float:
    return math.log(np.exp(log_w - log_w.max()).mean()) + float(log_w.max())


def test_equal_weights_are_exact_and_have_no_khat() -> None:
    found = numbers_of(np.full(200, -90.0))
    for name in ("elbo", "log_likelihood", "psis", "jvi1", "jvi2"):
        assert found[name] == pytest.approx(-90, abs=1e-9)
    assert list(found["iwae"].values()) == pytest.approx([-90] * 7, abs=1e-9)
    assert found["ess_median"] == pytest.approx(200)
    assert found["log_likelihood_mc_se"] == pytest.approx(0, abs=1e-7)
    assert found["reasons"] == ALONE | dict.fromkeys(KHAT, NO_KHAT)


def test_single_dominant_weight_makes_khat_infinite() -> None:
    log_w = normal(first=800.0)
    found = numbers_of(log_w)
    assert found["elbo"] == pytest.approx(log_w.mean())
    assert found["log_likelihood"] == pytest.approx(800 - math.log(200))
    assert found["psis"] == found["log_likelihood"]
    assert found["ess_median"] == pytest.approx(1)
    assert found["log_likelihood_mc_se"] == pytest.approx(1)
    assert found["khat_bad_fraction"] == 1
    jackknife = dict.fromkeys(
        ("jvi1", "jvi2"), "the jackknife needs at least three samples, no two of which dominate all others"
    )
    assert found["reasons"] == ALONE | jackknife | {"khat_median": DOMINANT}


def test_zero_weight_makes_only_the_elbo_undefined() -> None:
    """It counts as one of the K weights, and makes the ELBO minus infinity."""
    log_w = normal(first=-math.inf)
    found = numbers_of(log_w)
    assert found["log_likelihood"] == pytest.approx(log_mean(log_w))
    assert found["khat_median"] < 0.7
    assert found["iwae"]["1"] is None
    assert found["iwae"]["2"] is not None
    assert found["reasons"] == ALONE | dict.fromkeys(("elbo", "distortion", "iwae"), NOT_FINITE)


@pytest.mark.parametrize("first", [math.inf, math.nan])
def test_nonfinite_weight_makes_every_metric_undefined(first: float) -> None:
    found = numbers_of(normal(first=first))
    missing = dict.fromkeys((*ALL, "ess_median"), NOT_FINITE)
    assert found["reasons"] == ALONE | missing | dict.fromkeys(KHAT, NO_KHAT)
    assert {found[name] for name in missing if name != "iwae"} == {None}
    assert found["iwae"]["200"] is None


def test_only_zero_weights_make_every_metric_undefined() -> None:
    found = numbers_of(np.full(200, -math.inf))
    missing = dict.fromkeys((*ALL, "ess_median"), NOT_FINITE)
    assert found["reasons"] == ALONE | missing | dict.fromkeys(KHAT, NO_KHAT)


@pytest.mark.parametrize("number", [3, 24, 29])
def test_few_weights_are_scored_without_khat(number: int) -> None:
    log_w = normal(number)
    found = numbers_of(log_w)
    assert found["log_likelihood"] == pytest.approx(log_mean(log_w))
    assert found["psis"] == pytest.approx(found["log_likelihood"])
    weights = np.exp(log_w)
    assert found["ess_median"] == pytest.approx(weights.sum() ** 2 / (weights**2).sum())
    assert found["reasons"] == ALONE | dict.fromkeys(KHAT, NO_KHAT)


def test_one_bad_image_does_not_affect_the_khat_of_others() -> None:
    """One image of three has a NaN weight: means are null, the median of k-hat is that of the other images."""
    log_w = torch.as_tensor(np.stack([normal(first=math.nan), normal(), normal(first=3.0)], 1), device="cpu")
    zeros = torch.zeros_like(log_w)
    scores = scores_from_terms(LogWeightTerms(log_w, zeros, zeros))
    found = summarize(scores, active_units=1, num_pixels=7)
    assert found["log_likelihood"] is None
    assert found["khat_median"] == pytest.approx(scores.khat[1:].mean())
    assert np.isfinite(scores.log_likelihood[1:]).all()
