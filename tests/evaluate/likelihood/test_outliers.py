"""P-values of log p(x): by hand, uniform for typical images, small for atypical ones."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest

from pyro_vae.evaluate import outlier_p_values


def test_p_values_by_hand() -> None:
    found = outlier_p_values(np.array([-100.0, -90.0, -85.0, -70.0]), np.array([-95.0, -90.0, -85.0, -80.0]))
    np.testing.assert_allclose(found.low_likelihood, [1 / 5, 3 / 5, 4 / 5, 5 / 5])
    np.testing.assert_allclose(found.atypical, [2 / 5, 1, 1, 2 / 5])


def test_p_values_are_uniform_for_typical_images() -> None:
    """2,000 images of the same kind, 20,000 references: Kolmogorov-Smirnov at a level of 1e-4 each."""
    generator = np.random.default_rng(0)
    found = outlier_p_values(generator.normal(-90, 10, 2_000), generator.normal(-90, 10, 20_000))
    for values in found:
        assert kstest(values, "uniform").pvalue > 1e-4


def test_too_likely_images_are_atypical() -> None:
    generator = np.random.default_rng(0)
    found = outlier_p_values(np.array([-40.0, -150.0]), generator.normal(-90, 10, 999))
    np.testing.assert_allclose(found.low_likelihood, [1.0, 0.001])
    np.testing.assert_allclose(found.atypical, [0.002, 0.002])


def test_nan_is_rejected() -> None:
    with pytest.raises(ValueError, match="NaN"):
        outlier_p_values(np.array([np.nan]), np.zeros(3))
