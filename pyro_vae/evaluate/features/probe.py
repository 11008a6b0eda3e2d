r"""What simple classifiers make of features, given few labels.

Features that a program has found without labels are good where few labels are enough for a linear boundary, or where
neighbors are of one class. Every classifier is fitted to R random subsets of the training images whose classes are
known, the same for all features, and tested on the same M images. Whether subset r gets image m right, c_rm in {0, 1},
is mu + a_r + b_m + e_rm, crossed effects of subset and image, and the variance of the mean accuracy is

    Var(c..)  =  s_a^2 / R  +  s_b^2 / M  +  s_e^2 / (R M).

The binomial error of the test images does not shrink with R, since all subsets meet the same ones. The mean squares of
the two-way layout estimate it without bias: (MS_subsets + MS_images - MS_rest) / (R M). Searle, Casella, McCulloch,
"Variance Components", Wiley, 1992, chapter 4.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pyro_vae.evaluate.annealing.hmc import Progress

Array = np.ndarray
Pair = tuple[Array, Array]

LABEL_BUDGETS = (10, 100, 1000)
_NUM_SUBSETS = 10
_MAX_NEIGHBORS = 5
_MAX_ITERATIONS = 200


class Accuracy(NamedTuple):
    """Mean accuracy on the test images of a classifier of so many labels, and its standard error."""

    features: str
    classifier: str
    labels: int
    accuracy: float
    se: float


def mean_accuracy(correct: Array) -> tuple[float, float]:
    """Return the mean of what R subsets get right of M test images, (R, M), and its standard error.

    The error is that of other subsets of these training images and other test images. With one subset, of all the
    training images, it is the binomial one of the test images; with one test image it is NaN.
    """
    num_subsets, num_images = correct.shape
    mean = correct.mean()
    if num_images == 1:
        return float(mean), math.nan
    of_subsets, of_images = correct.mean(1, keepdims=True), correct.mean(0, keepdims=True)
    square = num_subsets * of_images.var(ddof=1)
    if num_subsets > 1:
        rest = np.square(correct - of_subsets - of_images + mean).sum() / ((num_subsets - 1) * (num_images - 1))
        square += num_images * of_subsets.var(ddof=1) - rest
    return float(mean), math.sqrt(max(0.0, square) / (num_subsets * num_images))


def labeled_subsets(
    classes: Array, seed: int, budgets: Sequence[int] = LABEL_BUDGETS, num_subsets: int = _NUM_SUBSETS
) -> dict[int, list[Array]]:
    """Draw training images whose class is told, as equally many of each class as there are.

    Args:
        classes: of the training images (N,).
        seed: of the draws.
        budgets: how many labels; those above N are left out.
        num_subsets: R.

    Returns:
        {labels: places of R subsets}, with that of all images, a single one, at the end.
    """
    num_images = len(classes)
    subsets = {}
    for budget in (budget for budget in budgets if budget < num_images):
        generator = np.random.default_rng([seed, budget])
        subsets[budget] = [_subset(classes, budget, generator) for _ in range(num_subsets)]
    return {**subsets, num_images: [np.arange(num_images)]}


def _subset(classes: Array, budget: int, generator: np.random.Generator) -> Array:
    order = generator.permutation(len(classes))
    # How many of its class come before an image. Each class gives one image at every turn, for as long as it has one.
    rank = np.empty(len(classes), int)
    for label in np.unique(classes):
        members = order[classes[order] == label]
        rank[members] = np.arange(len(members))
    return np.lexsort((generator.random(len(classes)), rank))[:budget]


def principal_components(train: Array, test: Array, num_components: int, seed: int = 0) -> Pair:
    """Project features (N, d) and (M, d) on the first principal components of the training images."""
    from sklearn.decomposition import PCA  # on use: scikit-learn takes seconds to import

    components = PCA(min(num_components, *train.shape), random_state=seed).fit(train)
    return components.transform(train), components.transform(test)


def linear_head(features: Array, classes: Array) -> Pair:
    """Fit multinomial logistic regression to labeled features (L, d), with an L2 penalty of C = 1.

    The penalty is on features whose variance is 1 on average: they are divided by one scale, the same for all. One for
    each would make as much of a latent unit that a program does not use as of one that it does, and of a pixel that is
    rarely on. So the fit depends neither on where the features have their origin, nor on their unit, nor on how they
    are rotated.

    Returns:
        Weights (d, C) and biases (C,) of the logits of the classes that there are, in increasing order.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    loc, scale = features.mean(0), math.sqrt(features.var(0).mean()) or 1.0
    model = LogisticRegression(max_iter=_MAX_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the iterations are bounded to bound the time
        model.fit((features - loc) / scale, classes)
    weight, bias = model.coef_.T / scale, model.intercept_
    if len(bias) == 1:  # of two classes, the log odds
        weight, bias = (np.concatenate([-part, part], -1) / 2 for part in (weight, bias))
    return weight, bias - loc @ weight


def logistic(train: Array, classes: Array, test: Array) -> Array:
    """Return the classes (M,) that the logistic regression of `linear_head` predicts."""
    weight, bias = linear_head(train, classes)
    return np.unique(classes)[(test @ weight + bias).argmax(1)]


def k_nearest_neighbors(train: Array, classes: Array, test: Array) -> Array:
    """Return the classes (M,) of the majority of the k nearest labeled images, by the Euclidean distance.

    k is 5, or the labels of a class where these are fewer: more neighbors than there are of the right class would
    outvote it. No label is spent on choosing it.
    """
    from sklearn.neighbors import KNeighborsClassifier

    labels_per_class = len(classes) // len(np.unique(classes))
    return (
        KNeighborsClassifier(min(_MAX_NEIGHBORS, labels_per_class), algorithm="brute").fit(train, classes).predict(test)
    )


# Each takes labeled features (L, d), their classes and test features (M, d).
CLASSIFIERS: dict[str, Callable[[Array, Array, Array], Array]] = {"logistic": logistic, "kNN": k_nearest_neighbors}


def probe(
    features: Mapping[str, Pair], classes: Pair, subsets: Mapping[int, Sequence[Array]], progress: Progress = iter
) -> list[Accuracy]:
    """Fit every classifier to every subset of every kind of features.

    Args:
        features: {name: of the training (N, d) and of the test images (M, d)}.
        classes: of the training (N,) and of the test images (M,), two at least.
        subsets: {labels: subsets of the training images}, see `labeled_subsets`.
        progress: wraps the iteration over features and classifiers.
    """
    rows = []
    for (name, (train, test)), classifier in progress(list(itertools.product(features.items(), CLASSIFIERS))):
        for num_labels, draws in subsets.items():
            predictions = [CLASSIFIERS[classifier](train[indices], classes[0][indices], test) for indices in draws]
            correct = np.array(predictions) == classes[1]
            rows.append(Accuracy(name, classifier, num_labels, *mean_accuracy(correct)))
    return rows
