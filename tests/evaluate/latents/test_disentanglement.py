"""Scores of codes whose relation to the factors is known: tables by hand, and grids that leave nothing to chance."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from pyro_vae.evaluate import Disentanglement, disentanglement_scores
from pyro_vae.evaluate.latents.disentanglement import information, separability

NUM_TREES = 50


def grid(*sizes: int, times: int = 1) -> np.ndarray:
    """Every combination of values of as many factors, so often: (N, F)."""
    return np.tile(np.indices(sizes).reshape(len(sizes), -1).T, (times, 1))


def score(codes: np.ndarray, factors: np.ndarray) -> Disentanglement:
    return disentanglement_scores((codes, factors), (codes, factors))


def test_information_of_a_joint_distribution_by_hand() -> None:
    """I = sum p log(p / (p_code p_factor)), over a table of counts; the code's values are bins of their own."""
    counts = np.array([[2, 1, 0], [1, 0, 4]])
    code, factor = (np.repeat(index.ravel(), counts.ravel()) for index in np.indices(counts.shape))
    joint = counts / counts.sum()
    of_code, of_factor = joint.sum(1, keepdims=True), joint.sum(0, keepdims=True)
    cells = joint > 0
    expected = (joint[cells] * np.log((joint / (of_code * of_factor))[cells])).sum()
    entropy = -(of_factor * np.log(of_factor)).sum()
    found = information(3.0 * code[:, None], 10 + factor[:, None])
    np.testing.assert_allclose(found, [[expected / entropy]], rtol=1e-12)


def test_bins_are_of_equal_width() -> None:
    """20 bins of (0, 40): 0 and 1.9 share one, 2.1 is in the next, and a far code makes them all wider."""
    codes, factor = np.array([0.0, 1.9, 2.1, 40.0]), np.array([0, 1, 2, 3])
    quarters = information(codes[:, None], factor[:, None]).item() * math.log(4)
    assert quarters == pytest.approx(1.5 * math.log(2))  # entropy of the shares 1/2, 1/4, 1/4
    codes[3] = 400.0
    thirds = information(codes[:, None], factor[:, None]).item() * math.log(4)
    assert thirds == pytest.approx(math.log(4) - 3 / 4 * math.log(3))


def test_codes_that_are_the_factors_have_every_score_in_closed_form() -> None:
    """In another order, scaled, shifted, one with its sign changed: of other units there is chance alone."""
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


def test_codes_that_know_nothing() -> None:
    """2N I is chi-squared of (bins - 1)(values - 1), and hits are binomial: false alarms 1.2e-4 and 6e-6.

    Of importances there is no such law: over 100 other seeds all three scores stayed below a third of the bound.
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
        # Var = sum_c p_c (1 - p_c) / n_c / size^2, at most 1 / (least n_c) / size^2, p_c the share predicted as c.
        error = np.bincount(factors[1000:2000, factor]).min() ** -0.5 / size
        assert (np.abs(found.separability[:, factor] - 1 / size) < 5 * error).all()
        assert abs(found.accuracy[factor] - 1 / size) < 5 * error
    assert max(found.mig, found.disentanglement, found.completeness) < 0.015


def test_a_collapsed_code_has_no_score() -> None:
    found = score(np.ones((240, 3)), grid(3, 4, times=20))
    assert (found.mig, found.sap, found.disentanglement, found.completeness) == (0, 0, 0, 0)
    assert found.informativeness == pytest.approx((1 / 3 + 1 / 4) / 2)


def test_factors_coded_twice_have_no_gap_and_are_less_complete() -> None:
    """A tree takes either of two equal units: completeness is 1 - H(share) / log 4, the share that of a fair coin.

    Within four standard errors of 50 trees: false alarms 1.3e-4.
    """
    factors = grid(2, 2, times=50)
    found = score(np.concatenate([factors, 2.0 * factors], 1), factors)
    assert (found.mig, found.sap) == (0, 0)
    assert found.disentanglement == pytest.approx(1)
    share = 0.5 + 4 * 0.5 / math.sqrt(NUM_TREES)
    most = 1 + (share * math.log(share) + (1 - share) * math.log(1 - share)) / math.log(4)
    assert 0.5 - 1e-12 <= found.completeness <= most < 1


def test_two_factors_in_one_unit_are_complete_and_not_disentangled() -> None:
    """Unit a + 3b: it matters to two of three factors alike. The gap of information does not see it; that of SAP does.

    From a + 3b the class means of a are 3, 4, 5, of b 1, 4, 7: 2/3, 1/3, 2/3 of a are hit, and all of b.
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


def test_a_turn_by_45_degrees_loses_both_gaps() -> None:
    """(a + b, a - b): b reversed takes one for the other, so that no unit is ahead; together they tell all."""
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


def test_scores_do_not_depend_on_order_scale_shift_and_sign_of_units() -> None:
    rng = np.random.default_rng(0)
    factors = rng.integers(0, 5, (600, 2))
    codes = factors @ rng.normal(size=(2, 4)) + rng.normal(size=(600, 4))
    train, test = (codes[:400], factors[:400]), (codes[400:], factors[400:])
    order, scale = [2, 0, 3, 1], np.array([3.0, -0.5, 2.0, -1.0])
    changed = tuple((scale * c[:, order] + 7, f) for c, f in (train, test))
    np.testing.assert_allclose(information(7 + scale * codes[:, order], factors), information(codes, factors)[order])
    np.testing.assert_allclose(separability(*changed), separability(train, test)[order])


def test_monotone_maps_move_bins_and_no_tree() -> None:
    rng = np.random.default_rng(0)
    codes = np.stack([rng.permutation(600), rng.permutation(600)], 1) / 100
    factors = np.stack([codes[:, 0] // 2, (codes.sum(1) // 3)], 1).astype(int)
    plain, bent = score(codes, factors), score(np.exp(codes), factors)
    np.testing.assert_allclose(bent.importance, plain.importance, rtol=1e-12)
    assert np.abs(bent.information - plain.information).max() > 0.1


def test_accuracy_is_that_of_held_out_data_balanced_over_the_values_there() -> None:
    """Thresholds of the class means 0 and 10: of three held-out zeros one is hit, of one ten all."""
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
def test_what_cannot_be_scored(codes: np.ndarray, factors: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        score(codes, factors)
