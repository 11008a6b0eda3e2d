"""Scores of codes whose relation to the factors is known: tables by hand, and complete grids of factors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from pyro_vae.evaluate import Disentanglement, disentanglement_scores
from pyro_vae.evaluate.latents.disentanglement import information, separability

NUM_TREES = 50


def grid(*sizes: int, times: int = 1) -> np.ndarray:
    """Return every combination of factor values, each `times` times: (N, F)."""
    return np.tile(np.indices(sizes).reshape(len(sizes), -1).T, (times, 1))


def score(codes: np.ndarray, factors: np.ndarray) -> Disentanglement:
    return disentanglement_scores((codes, factors), (codes, factors))


def test_information_of_a_joint_distribution_by_hand() -> None:
    """I = sum p log(p / (p_code p_factor)) over a table of counts; each value of the code has its own bin."""
    counts = np.array([[2, 1, 0], [1, 0, 4]])
    code, factor = (np.repeat(index.ravel(), counts.ravel()) for index in np.indices(counts.shape))
    joint = counts / counts.sum()
    of_code, of_factor = joint.sum(1, keepdims=True), joint.sum(0, keepdims=True)
    cells = joint > 0
    expected = (joint[cells] * np.log((joint / (of_code * of_factor))[cells])).sum()
    entropy = -(of_factor * np.log(of_factor)).sum()
    found = information(3.0 * code[:, None], 10 + factor[:, None])
    np.testing.assert_allclose(found, [[expected / entropy]], rtol=1e-12)


def test_bins_have_equal_width() -> None:
    """20 bins of (0, 40): 0 and 1.9 share a bin, 2.1 is in the next one, and an outlier widens all bins."""
    codes, factor = np.array([0.0, 1.9, 2.1, 40.0]), np.array([0, 1, 2, 3])
    quarters = information(codes[:, None], factor[:, None]).item() * math.log(4)
    assert quarters == pytest.approx(1.5 * math.log(2))  # entropy of the fractions 1/2, 1/4, 1/4
    codes[3] = 400.0
    thirds = information(codes[:, None], factor[:, None]).item() * math.log(4)
    assert thirds == pytest.approx(math.log(4) - 3 / 4 * math.log(3))


def test_codes_equal_to_the_factors_have_closed_form_scores() -> None:
    """Reordered, scaled, shifted and with one sign flipped; every other unit is at chance level."""
    factors = grid(3, 4, 10, times=20)
    codes = np.stack([5.0 * factors[:, 1], 0 * factors[:, 0], -factors[:, 2] / 7, 1e3 + factors[:, 0]], 1)
    found = score(codes, factors)
    places = np.array([[0, 1, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0]])
    np.testing.assert_allclose(found.information, places, atol=1e-12)
    np.testing.assert_allclose(found.importance, places, atol=1e-12)
    np.testing.assert_allclose(found.separability, np.maximum(places, [1 / 3, 1 / 4, 1 / 10]))
    np.testing.assert_array_equal(found.accuracy, 1)
    assert found.mig == pytest.approx(1)
    assert found.sap == pytest.approx(np.mean([1 - 1 / 3, 1 - 1 / 4, 1 - 1 / 10]))
    assert (found.disentanglement, found.completeness, found.informativeness) == pytest.approx((1, 1, 1))


@pytest.mark.parametrize("sizes", [(4, 4), (2, 10), (3, 6, 10, 8, 8)])
def test_largest_sap_is_one_minus_chance(sizes: tuple[int, ...]) -> None:
    """Perfect codes: the second unit of each factor is constant given it, with a balanced accuracy of 1/V."""
    factors = grid(*sizes)
    predicted = separability((factors.astype(float), factors), (factors.astype(float), factors))
    second, best = np.sort(predicted, axis=0)[-2:]
    np.testing.assert_allclose((best - second).mean(), 1 - np.mean([1 / size for size in sizes]))


def test_random_codes_score_at_chance_level() -> None:
    """2N I is chi-squared with (bins - 1)(values - 1) d.f., and hits are binomial: false alarms 1.2e-4 and 6e-6.

    Importances have no such distribution: over 100 other seeds all three scores stayed below a third of the bound.
    """
    rng = np.random.default_rng(0)
    sizes = (3, 8)
    factors = np.stack([rng.integers(0, size, 8000) for size in sizes], 1)
    codes = rng.uniform(size=(8000, 3))
    shares = information(codes, factors)
    found = disentanglement_scores((codes[:1000], factors[:1000]), (codes[1000:2000], factors[1000:2000]))
    for factor, size in enumerate(sizes):
        entropy = scipy.stats.entropy(np.bincount(factors[:, factor]))
        low, high = scipy.stats.chi2(19 * (size - 1)).interval(1 - 2e-5)
        statistics = 2 * 8000 * entropy * shares[:, factor]
        assert ((low < statistics) & (statistics < high)).all()
        # Var = sum_c p_c (1 - p_c) / n_c / size^2 <= 1 / (min n_c) / size^2, where p_c is the fraction predicted as
        # c.
        error = np.bincount(factors[1000:2000, factor]).min() ** -0.5 / size
        assert (np.abs(found.separability[:, factor] - 1 / size) < 5 * error).all()
        assert abs(found.accuracy[factor] - 1 / size) < 5 * error
    assert max(found.mig, found.disentanglement, found.completeness) < 0.015


def test_collapsed_code_scores_zero() -> None:
    found = score(np.ones((240, 3)), grid(3, 4, times=20))
    assert (found.mig, found.sap, found.disentanglement, found.completeness) == (0, 0, 0, 0)
    assert found.informativeness == pytest.approx((1 / 3 + 1 / 4) / 2)


def test_duplicated_units_have_no_gap_and_lower_completeness() -> None:
    """A tree uses either of two equal units: completeness is 1 - H(fraction) / log 4, the fraction binomial.

    Within four standard errors of 50 trees: false alarms 1.3e-4.
    """
    factors = grid(2, 2, times=50)
    found = score(np.concatenate([factors, 2.0 * factors], 1), factors)
    assert (found.mig, found.sap) == (0, 0)
    assert found.disentanglement == pytest.approx(1)
    share = 0.5 + 4 * 0.5 / math.sqrt(NUM_TREES)
    most = 1 + (share * math.log(share) + (1 - share) * math.log(1 - share)) / math.log(4)
    assert 0.5 - 1e-12 <= found.completeness <= most < 1


def test_two_factors_in_one_unit_are_complete_but_not_disentangled() -> None:
    """Unit a + 3b is equally important for two of three factors. MIG does not detect this; SAP does.

    The class means of a + 3b are 3, 4, 5 for a and 1, 4, 7 for b: 2/3, 1/3, 2/3 of a are classified correctly, and all
    of b.
    """
    factors = grid(3, 3, 4, times=20)
    codes = np.stack([factors[:, 0] + 3 * factors[:, 1], factors[:, 2], 0 * factors[:, 0]], 1).astype(float)
    found = score(codes, factors)
    np.testing.assert_allclose(found.importance, [[1, 1, 0], [0, 0, 1], [0, 0, 0]], atol=1e-12)
    assert found.mig == pytest.approx(1)
    assert found.completeness == pytest.approx(1)
    assert found.disentanglement == pytest.approx(2 / 3 * (1 - math.log(2) / math.log(3)) + 1 / 3)
    np.testing.assert_allclose(found.separability[0], [5 / 9, 1, 1 / 4])
    assert found.sap == pytest.approx(np.mean([5 / 9 - 1 / 3, 1 - 1 / 3, 1 - 1 / 4]))


def test_rotation_by_45_degrees_removes_both_gaps() -> None:
    """(a + b, a - b): reversing b swaps the units, so that neither leads; together they are fully informative."""
    factors = grid(9, 9, times=10)
    straight, turned = score(factors.astype(float), factors), score(factors @ [[1.0, 1.0], [1.0, -1.0]], factors)
    np.testing.assert_allclose(straight.information, np.eye(2), atol=1e-12)
    assert straight.sap == pytest.approx(1 - 1 / 9)
    assert turned.information.min() > 0.2
    assert turned.mig == pytest.approx(0, abs=1e-12)
    assert turned.sap == pytest.approx(0, abs=1e-12)
    assert turned.informativeness == 1
    for name in ("disentanglement", "completeness"):
        assert getattr(straight, name) == pytest.approx(1)
        assert getattr(turned, name) < 0.05


def test_scores_are_invariant_to_order_scale_shift_and_sign() -> None:
    rng = np.random.default_rng(0)
    factors = rng.integers(0, 5, (600, 2))
    codes = factors @ rng.normal(size=(2, 4)) + rng.normal(size=(600, 4))
    train, test = (codes[:400], factors[:400]), (codes[400:], factors[400:])
    order, scale = [2, 0, 3, 1], np.array([3.0, -0.5, 2.0, -1.0])
    changed = tuple((scale * c[:, order] + 7, f) for c, f in (train, test))
    np.testing.assert_allclose(information(7 + scale * codes[:, order], factors), information(codes, factors)[order])
    np.testing.assert_allclose(separability(*changed), separability(train, test)[order])


def test_monotone_maps_change_bins_but_not_trees() -> None:
    rng = np.random.default_rng(0)
    codes = np.stack([rng.permutation(600), rng.permutation(600)], 1) / 100
    factors = np.stack([codes[:, 0] // 2, (codes.sum(1) // 3)], 1).astype(int)
    plain, bent = score(codes, factors), score(np.exp(codes), factors)
    np.testing.assert_allclose(bent.importance, plain.importance, rtol=1e-12)
    assert np.abs(bent.information - plain.information).max() > 0.1


def test_separability_is_balanced_accuracy_on_held_out_data() -> None:
    """Threshold between the class means 0 and 10: of three held-out zeros one is correct, of one ten all."""
    train = np.array([[0.0], [10.0]]), np.array([[0], [1]])
    test = np.array([[4.0], [6.0], [9.0], [8.0]]), np.array([[0], [0], [0], [1]])
    assert separability(train, test).item() == pytest.approx((1 / 3 + 1) / 2)
    assert separability(train, (test[0][:3], test[1][:3])).item() == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("codes", "factors", "words"),
    [
        (np.zeros((6, 1)), grid(2, 3), "1 units and 2 factors"),
        (np.zeros((6, 2)), grid(6), "2 units and 1 factors"),
        (np.full((6, 2), np.nan), grid(2, 3), "non-finite"),
        (np.zeros((6, 2)), grid(6, 1), "Factor 1 has only one value"),
    ],
)
def test_invalid_codes_or_factors_are_rejected(codes: np.ndarray, factors: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        score(codes, factors)
