r"""How far each known factor of the data is coded by one latent unit, and each unit codes one factor.

Codes z are (N, D), factors v are (N, F), whole numbers. Three matrices (D, F) say what unit d tells of factor f:

    information    I(z_d; v_f) / H(v_f), z_d in 20 bins
    separability   balanced accuracy of a linear classifier of v_f from z_d alone, on held-out data
    importance     share of unit d in what a random forest gains, which tells v_f from all units

Locatello, Bauer, Lucic, Rätsch, Gelly, Schölkopf, Bachem, "Challenging Common Assumptions in the Unsupervised Learning
of Disentangled Representations", ICML 2019 (https://arxiv.org/abs/1811.12359), compare the scores made of them and say
how little these agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pyro_vae.errors import UserError

Array = np.ndarray

_NUM_BINS = 20
_NUM_TREES = 50
_LEAF = 5  # codes: smaller leaves learn noise by heart, whose importance then is every unit's


@dataclass(frozen=True)
class Disentanglement:
    """The matrices (D, F), the forests' held-out balanced accuracy of each factor (F,), and the scores, 0 to 1."""

    information: Array
    separability: Array
    importance: Array
    accuracy: Array

    @property
    def mig(self) -> float:
        """Mutual information gap: by how much the best unit of a factor is ahead of the second, mean over factors.

        Chen, Li, Grosse, Duvenaud, "Isolating Sources of Disentanglement in Variational Autoencoders", NeurIPS 2018
        (https://arxiv.org/abs/1802.04942).
        """
        return _gap(self.information)

    @property
    def sap(self) -> float:
        """Separated attribute predictability: the same gap of separability.

        Kumar, Sattigeri, Balakrishnan, "Variational Inference of Disentangled Latent Concepts from Unlabeled
        Observations", ICLR 2018 (https://arxiv.org/abs/1711.00848).
        """
        return _gap(self.separability)

    @property
    def disentanglement(self) -> float:
        """1 where each unit matters to one factor: less the entropy of each row, rows weighted by their importance.

        This and the two below: Eastwood, Williams, "A Framework for the Quantitative Evaluation of Disentangled
        Representations", ICLR 2018 (https://openreview.net/forum?id=By-7dz-AZ).
        """
        weights = self.importance.sum(1) / (self.importance.sum() or 1)
        return float(weights @ _concentration(self.importance))

    @property
    def completeness(self) -> float:
        """1 where one unit matters to each factor: less the entropy of each column, mean over factors."""
        return float(_concentration(self.importance.T).mean())

    @property
    def informativeness(self) -> float:
        """How well all units together tell the factors: mean balanced accuracy of the forests on held-out data."""
        return float(self.accuracy.mean())


def disentanglement_scores(train: tuple[Array, Array], test: tuple[Array, Array], seed: int = 0) -> Disentanglement:
    """Score codes against the factors behind them.

    Args:
        train: codes (N, D) and factors (N, F), to which classifiers are fitted.
        test: codes and factors held out, on which they are scored. Information is that of both together.
        seed: of the forests.

    Raises:
        ValueError: fewer than two units or two factors, a code that is not finite, or a factor of one value only.
    """
    codes, factors = (np.concatenate(pair) for pair in zip(train, test, strict=True))
    if codes.shape[1] < 2 or factors.shape[1] < 2:
        raise UserError(f"{codes.shape[1]} units and {factors.shape[1]} factors: two or more of each are needed.")
    if not np.isfinite(codes).all():
        raise UserError("A code is not finite: the fit has diverged.")
    if (constant := np.ptp(train[1], axis=0) == 0).any():
        raise UserError(f"Factor {int(constant.argmax())} has one value only: take more images.")
    return Disentanglement(information(codes, factors), separability(train, test), *_forests(train, test, seed))


def information(codes: Array, factors: Array) -> Array:
    """Estimate I(z_d; v_f) / H(v_f) from 20 bins of equal width between the least and the largest code, (D, F).

    The plug-in estimate of N codes: too high by about (bins - 1) (values - 1) / 2N nats, alike for all units of a
    factor, so that a gap loses this. Bins follow a change of scale, shift or sign of a unit; any other monotone map
    moves them.
    """
    bins = np.stack([_bins(unit) for unit in codes.T])
    return np.array([[_shared(unit, factor) for factor in factors.T] for unit in bins])


def separability(train: tuple[Array, Array], test: tuple[Array, Array]) -> Array:
    """Classify each factor from each unit alone; return balanced accuracies on the test data, (D, F).

    The classifier is the linear discriminant of equal class weights, for one unit the nearest class mean: thresholds
    halfway between. A machine of one class against the rest, as is often taken, cannot tell middle values by one unit.
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
    """Fit a forest for each factor; return the mean decrease in impurity by each unit, (D, F), and accuracies (F,)."""
    from sklearn.ensemble import RandomForestClassifier  # on use: scikit-learn takes seconds to import

    importances, accuracies = [], []
    for factor, held_out in zip(train[1].T, test[1].T, strict=True):
        # Every unit is tried at every split: a tree that is not shown the best one would have to take another.
        forest = RandomForestClassifier(_NUM_TREES, min_samples_leaf=_LEAF, max_features=None, random_state=seed)
        forest.fit(train[0], factor)
        importances.append(forest.feature_importances_)
        accuracies.append(_balanced_accuracy(held_out, forest.predict(test[0])))
    return np.array(importances).T, np.array(accuracies)


def _bins(unit: Array) -> Array:
    edges = np.histogram_bin_edges(unit, _NUM_BINS)
    return np.digitize(unit, edges[1:-1])


def _shared(bins: Array, factor: Array) -> float:
    _, values = np.unique(factor, return_inverse=True)
    counts = np.zeros((_NUM_BINS, values.max() + 1), int)
    np.add.at(counts, (bins, values), 1)
    entropy = _entropy(counts.sum(0))
    return (_entropy(counts.sum(1)) + entropy - _entropy(counts.ravel())) / entropy


def _entropy(weights: Array) -> float:
    """Return the entropy in nats of the shares of weights."""
    shares = weights[weights > 0] / weights.sum()
    return float(-(shares * np.log(shares)).sum())


def _concentration(rows: Array) -> Array:
    """Return 1 - H(row) / log(length of a row), and 0 for rows of zeros: units or factors that no tree has used."""
    return np.array([1 - _entropy(row) / math.log(len(row)) if row.any() else 0.0 for row in rows])


def _gap(matrix: Array) -> float:
    second, best = np.sort(matrix, axis=0)[-2:]
    return float((best - second).mean())


def _balanced_accuracy(factor: Array, predicted: Array) -> float:
    """Return the share of hits among the images of each value, mean over the values that are there."""
    return float(np.mean([(predicted[factor == value] == value).mean() for value in np.unique(factor)]))
