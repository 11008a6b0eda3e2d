"""Classifiers of features: closed forms, invariances, and the standard error of a mean accuracy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from pyro_vae.evaluate import labeled_subsets, mean_accuracy, principal_components, probe
from pyro_vae.evaluate.features.probe import k_nearest_neighbors, linear_head, logistic


def gaussians(number: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Classes 0 and 1 around -mu and mu in R^5, |mu| = 1: the accuracy of the Bayes rule is Phi(1)."""
    classes = generator.integers(0, 2, number)
    mu = np.array([0.8, -0.6, 0, 0, 0])
    return generator.standard_normal((number, 5)) + np.outer(2 * classes - 1, mu), classes


def test_logistic_regression_reaches_the_bayes_rate() -> None:
    """5,000 test images, 4 s.e.; five weights fitted to 5,000 labels cost far less. False alarms 6e-5."""
    generator = np.random.default_rng(0)
    (train, known), (test, classes) = gaussians(5000, generator), gaussians(5000, generator)
    (row,) = (
        row
        for row in probe({"x": (train, test)}, (known, classes), {5000: [np.arange(5000)]})
        if row.classifier == "logistic"
    )
    bayes = scipy.stats.norm.cdf(1)
    assert row.se == pytest.approx(math.sqrt(bayes * (1 - bayes) / 5000), rel=0.02)
    assert abs(row.accuracy - bayes) < 4 * row.se


def test_noise_is_classified_at_chance_level() -> None:
    """Ten classes, every classifier and number of labels, 4 s.e.: six comparisons, false alarms 4e-4."""
    generator = np.random.default_rng(1)
    train, test = generator.standard_normal((1000, 4)), generator.standard_normal((2000, 4))
    classes = generator.integers(0, 10, 1000), generator.integers(0, 10, 2000)
    rows = probe({"noise": (train, test)}, classes, labeled_subsets(classes[0], 0, (10, 100)))
    assert len(rows) == 6
    for row in rows:
        assert abs(row.accuracy - 0.1) < 4 * row.se


@pytest.mark.parametrize(
    ("num_subsets", "of_subset", "of_image", "of_both"),
    [(1, 0.0, 1.0, 0.5), (2, 0.6, 1.0, 0.5), (10, 0.6, 1.0, 0.5), (10, 1.0, 0.1, 0.1), (10, 0.0, 0.0, 1.0)],
)
def test_standard_error_covers_subsets_crossed_with_images(
    num_subsets: int, of_subset: float, of_image: float, of_both: float
) -> None:
    """A threshold on effects of subset, image and both: the squared deviation from Phi(0.2) is se^2 on average.

    3,000 simulations, 4 s.e. of the mean difference. The effect of a single subset is not identifiable and is left out.
    False alarms 6e-5 each.
    """
    generator = np.random.default_rng(num_subsets)
    total = math.hypot(of_subset, of_image, of_both)
    differences = []
    for _ in range(3000):
        effects = of_subset * generator.standard_normal((num_subsets, 1)) + of_image * generator.standard_normal(40)
        correct = effects + of_both * generator.standard_normal((num_subsets, 40)) < 0.2 * total
        accuracy, error = mean_accuracy(correct)
        differences.append((accuracy - scipy.stats.norm.cdf(0.2)) ** 2 - error**2)
    assert abs(np.mean(differences)) < 4 * np.std(differences) / math.sqrt(3000)


def test_standard_error_of_one_subset_is_binomial() -> None:
    correct = np.arange(50)[None] < 40
    accuracy, error = mean_accuracy(correct)
    assert (accuracy, error) == (0.8, pytest.approx(math.sqrt(0.8 * 0.2 / 49)))
    # Equal mistakes on every subset carry no more information than one subset.
    assert mean_accuracy(np.repeat(correct, 7, 0)) == (0.8, pytest.approx(error))
    assert math.isnan(mean_accuracy(np.ones((3, 1)))[1])


@given(st.lists(st.integers(0, 4), min_size=12, max_size=60), st.integers(1, 11), st.integers(0, 99))
def test_subsets_are_stratified(labels: list[int], budget: int, seed: int) -> None:
    classes = np.array(labels)
    subsets = labeled_subsets(classes, seed, (budget, len(classes) + 1), num_subsets=3)
    assert list(subsets) == [budget, len(classes)]
    assert sorted(subsets[len(classes)][0]) == list(range(len(classes)))
    for places in subsets[budget]:
        assert len(set(places)) == budget
        counts, all_there = np.bincount(classes[places], minlength=5), np.bincount(classes, minlength=5)
        # Class counts differ by at most one, except for classes that are exhausted.
        assert counts.max() - counts[counts < all_there].min(initial=counts.max()) <= 1
    again = labeled_subsets(classes, seed, (budget,), num_subsets=2)
    for places, same in zip(subsets[budget], again[budget], strict=False):
        np.testing.assert_array_equal(places, same)


def test_remainder_label_may_be_of_any_class() -> None:
    """One label for four classes, one with nine tenths of the images: chi2 of 2,000 draws, false alarms 1e-4."""
    classes = np.repeat([0, 1, 2, 3], [90, 4, 3, 3])
    draws = [classes[places[0]] for places in labeled_subsets(classes, 0, (1,), num_subsets=2000)[1]]
    assert scipy.stats.chisquare(np.bincount(draws)).pvalue > 1e-4


def test_all_features_use_the_same_subsets() -> None:
    generator = np.random.default_rng(2)
    (train, known), (test, classes) = gaussians(200, generator), gaussians(100, generator)
    rows = probe({"a": (train, test), "b": (train, test)}, (known, classes), labeled_subsets(known, 0, (10,)))
    assert [row[1:] for row in rows if row.features == "a"] == [row[1:] for row in rows if row.features == "b"]
    assert {row.labels for row in rows} == {10, 200}


def test_logistic_regression_is_invariant_to_shift_scale_and_rotation() -> None:
    """Features of four classes shifted, rotated and scaled: the same log odds to 1e-6, the same predictions."""
    generator = np.random.default_rng(3)
    train, test = generator.standard_normal((300, 6)) * np.arange(1, 7), generator.standard_normal((500, 6)) * 3
    known = generator.integers(0, 4, 300)
    turn = scipy.stats.ortho_group.rvs(6, random_state=0)
    shift = generator.standard_normal(6)
    moved_train, moved_test = (1e3 * (x @ turn + shift) for x in (train, test))
    weight, bias = linear_head(train, known)
    moved_weight, moved_bias = linear_head(moved_train, known)
    np.testing.assert_allclose(moved_test @ moved_weight + moved_bias, test @ weight + bias, atol=1e-6)
    np.testing.assert_array_equal(logistic(moved_train, known, moved_test), logistic(train, known, test))


def test_linear_head_of_two_classes_is_optimal() -> None:
    """The gradient of sum log(1 + exp(-margin)) + |w|^2 / 2, features of mean variance 1, is below 1e-3 of 200."""
    (train, known) = gaussians(200, np.random.default_rng(4))
    weight, bias = linear_head(train, known + 3)
    scale = math.sqrt(train.var(0).mean())
    log_odds = train @ (weight[:, 1] - weight[:, 0]) + bias[1] - bias[0]
    residual = scipy.special.expit(log_odds) - known
    gradient = (train - train.mean(0)).T @ residual / scale + (weight[:, 1] - weight[:, 0]) * scale
    assert abs(np.append(gradient, residual.sum())).max() < 200 * 1e-3
    assert set(logistic(train, known + 3, train)) == {3, 4}


def test_principal_components_span_the_top_subspace() -> None:
    generator = np.random.default_rng(5)
    train, test = generator.standard_normal((400, 8)) * np.arange(1, 9) + 5, generator.standard_normal((50, 8)) * 4
    _, vectors = np.linalg.eigh(np.cov(train.T))
    top = vectors[:, -3:]
    for found, x in zip(principal_components(train, test, 3), (train, test), strict=True):
        centred = x - train.mean(0)
        np.testing.assert_allclose(found @ found.T, centred @ top @ top.T @ centred.T, atol=1e-8)


def test_all_principal_components_predict_like_the_pixels() -> None:
    """An orthogonal map changes no distance and no log odds: exactly the same predictions."""
    generator = np.random.default_rng(6)
    (train, known), (test, classes) = gaussians(300, generator), gaussians(300, generator)
    turned = principal_components(train, test, 100)
    assert turned[0].shape == train.shape
    subsets = labeled_subsets(known, 0, (10, 100))
    for row, same in zip(
        probe({"x": (train, test)}, (known, classes), subsets),
        probe({"x": turned}, (known, classes), subsets),
        strict=True,
    ):
        assert row == same
    np.testing.assert_array_equal(
        k_nearest_neighbors(train, known, test), k_nearest_neighbors(turned[0], known, turned[1])
    )


@pytest.mark.parametrize(("each", "neighbours"), [(1, 1), (3, 3), (40, 5)])
def test_number_of_neighbors_is_five_or_the_labels_per_class(each: int, neighbours: int) -> None:
    """Votes counted by hand; with two classes and an odd number of neighbors there are no ties."""
    generator = np.random.default_rng(7)
    train, test = generator.standard_normal((2 * each, 3)), generator.standard_normal((200, 3))
    known = np.arange(2 * each) % 2
    distances = np.linalg.norm(test[:, None] - train, axis=-1)
    votes = known[distances.argsort(1)[:, :neighbours]]
    np.testing.assert_array_equal(k_nearest_neighbors(train, known, test), votes.mean(1) > 0.5)
