r"""Disentanglement: the extent to which one latent unit encodes each known factor, and each unit one factor.

Codes z are (N, D), factors v are integers (N, F). Three matrices (D, F) measure how much unit d reveals of factor f:

    information    I(z_d; v_f) / H(v_f), with z_d in 20 bins
    separability   held-out balanced accuracy of a linear classifier of v_f from z_d
    importance     fraction of the impurity decrease due to z_d in a random forest that predicts v_f from all units

Locatello, Bauer, Lucic, Rätsch, Gelly, Schölkopf, Bachem, "Challenging Common Assumptions in the Unsupervised Learning
of Disentangled Representations", ICML 2019 (https://arxiv.org/abs/1811.12359), compare the scores below and find that
they often disagree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pyro_vae.errors import UserError

Array = np.ndarray

_NUM_BINS = 20
_NUM_TREES = 50
_LEAF = 5  # minimum codes per leaf: smaller leaves overfit and spread importance over all units


@dataclass(frozen=True)
class Disentanglement:
    """The three matrices and the scores derived from them, each between 0 and 1. The largest SAP is below 1, see `sap`.

    Attributes:
        information: Normalized mutual information, shape (D, F).
        separability: Balanced accuracy of a linear classifier on one unit, shape (D, F).
        importance: Feature importance in random forests, shape (D, F).
        accuracy: Held-out balanced accuracy of the forest of each factor, shape (F,).
    """

    information: Array
    separability: Array
    importance: Array
    accuracy: Array

    @property
    def mig(self) -> float:
        """Mutual information gap: difference between the two most informative units of a factor, mean over factors.

        Chen, Li, Grosse, Duvenaud, "Isolating Sources of Disentanglement in Variational Autoencoders", NeurIPS 2018
        (https://arxiv.org/abs/1802.04942).
        """
        return _gap(self.information)

    @property
    def sap(self) -> float:
        """Separated attribute predictability: the same gap of separability, between 0 and 1 - mean(1/V).

        As published, the score of a unit is its balanced accuracy, which is 1/V for a unit that reveals nothing of a
        factor with V values. Perfect codes, one unit for each factor, thus have a SAP of 1 - mean(1/V), e.g. 0.75 for
        two factors of 4 values, and not 1. That limit depends on the data set but not on the model.

        Kumar, Sattigeri, Balakrishnan, "Variational Inference of Disentangled Latent Concepts from Unlabeled
        Observations", ICLR 2018 (https://arxiv.org/abs/1711.00848).
        """
        return _gap(self.separability)

    @property
    def disentanglement(self) -> float:
        """One minus the normalized entropy of each row of importances, weighted by row sums: 1 for one factor per unit.

        This score and the two below: Eastwood, Williams, "A Framework for the Quantitative Evaluation of Disentangled
        Representations", ICLR 2018 (https://openreview.net/forum?id=By-7dz-AZ).
        """
        weights = self.importance.sum(1) / (self.importance.sum() or 1)
        return float(weights @ _concentration(self.importance))

    @property
    def completeness(self) -> float:
        """One minus the normalized entropy of each column, mean over factors: 1 for one unit per factor."""
        return float(_concentration(self.importance.T).mean())

    @property
    def informativeness(self) -> float:
        """Mean held-out balanced accuracy of the forests: how well all units jointly predict the factors."""
        return float(self.accuracy.mean())


def disentanglement_scores(train: tuple[Array, Array], test: tuple[Array, Array], seed: int = 0) -> Disentanglement:
    """Score codes against the factors that generated the data.

    Args:
        train: Codes (N, D) and factors (N, F), to which the classifiers are fitted.
        test: Held-out codes and factors, on which they are scored. Information is estimated from both sets together.
        seed: Random seed of the forests.

    Raises:
        ValueError: There are fewer than two units or factors, a code is non-finite, or a factor has only one value.
    """
    codes, factors = (np.concatenate(pair) for pair in zip(train, test, strict=True))
    if codes.shape[1] < 2 or factors.shape[1] < 2:
        raise UserError(f"{codes.shape[1]} units and {factors.shape[1]} factors: at least two of each are required.")
    if not np.isfinite(codes).all():
        raise UserError("A code is non-finite: the fit has diverged.")
    if (constant := np.ptp(train[1], axis=0) == 0).any():
        raise UserError(f"Factor {int(constant.argmax())} has only one value: use more images.")
    return Disentanglement(information(codes, factors), separability(train, test), *_forests(train, test, seed))


def information(codes: Array, factors: Array) -> Array:
    """Estimate I(z_d; v_f) / H(v_f) (D, F), with 20 bins of equal width between the lowest and highest code of a unit.

    The plug-in estimate from N codes is biased upward by about (bins - 1) (values - 1) / 2N nats for every unit of a
    factor, which cancels in gaps. It is invariant to the scale, shift and sign of a unit, since the bins follow them,
    but not to other monotone transformations.
    """
    bins = np.stack([_bins(unit) for unit in codes.T])
    return np.array([[_normalized_information(unit, factor) for factor in factors.T] for unit in bins])


def separability(train: tuple[Array, Array], test: tuple[Array, Array]) -> Array:
    """Classify each factor from each unit, and return balanced accuracies on the test data (D, F).

    The classifier is linear discriminant analysis with equal class weights. For a single unit it predicts the nearest
    class mean, with thresholds halfway between means. One-vs-rest SVMs, a common choice, cannot separate middle values
    with one unit.
    """
    codes, factors = train
    accuracies = np.empty((codes.shape[1], factors.shape[1]))
    for f, factor in enumerate(factors.T):
        values = np.unique(factor)
        means = np.stack([codes[factor == value].mean(0) for value in values])  # (values, D)
        nearest = np.abs(test[0][:, :, None] - means.T).argmin(2)  # (N, D)
        accuracies[:, f] = [_balanced_accuracy(test[1][:, f], values[unit]) for unit in nearest.T]
    return accuracies


def _forests(train: tuple[Array, Array], test: tuple[Array, Array], seed: int) -> tuple[Array, Array]:
    """Fit a forest per factor; return the mean decrease in impurity by each unit (D, F), and accuracies (F,)."""
    from sklearn.ensemble import RandomForestClassifier  # imported on use: scikit-learn takes seconds to import

    importances, accuracies = [], []
    for factor, held_out in zip(train[1].T, test[1].T, strict=True):
        # max_features=None tries every unit at every split, so that the best one is always available.
        forest = RandomForestClassifier(_NUM_TREES, min_samples_leaf=_LEAF, max_features=None, random_state=seed)
        forest.fit(train[0], factor)
        importances.append(forest.feature_importances_)
        accuracies.append(_balanced_accuracy(held_out, forest.predict(test[0])))
    return np.array(importances).T, np.array(accuracies)


def _bins(unit: Array) -> Array:
    edges = np.histogram_bin_edges(unit, _NUM_BINS)
    return np.digitize(unit, edges[1:-1])


def _normalized_information(bins: Array, factor: Array) -> float:
    _, values = np.unique(factor, return_inverse=True)
    counts = np.zeros((_NUM_BINS, values.max() + 1), int)
    np.add.at(counts, (bins, values), 1)
    entropy = _entropy(counts.sum(0))
    return (_entropy(counts.sum(1)) + entropy - _entropy(counts.ravel())) / entropy


def _entropy(weights: Array) -> float:
    """Return the entropy in nats of a distribution with the given unnormalized weights."""
    probs = weights[weights > 0] / weights.sum()
    return float(-(probs * np.log(probs)).sum())


def _concentration(rows: Array) -> Array:
    """Return 1 - H(row) / log(row length), and 0 for rows of zeros: units or factors that no tree uses."""
    return np.array([1 - _entropy(row) / math.log(len(row)) if row.any() else 0.0 for row in rows])


def _gap(matrix: Array) -> float:
    second, best = np.sort(matrix, axis=0)[-2:]
    return float((best - second).mean())


def _balanced_accuracy(factor: Array, predicted: Array) -> float:
    """Return the mean recall over the values that occur."""
    return float(np.mean([(predicted[factor == value] == value).mean() for value in np.unique(factor)]))
