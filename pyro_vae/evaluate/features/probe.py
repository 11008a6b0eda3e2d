r"""Linear and k-nearest-neighbor probes of features, trained on few labels.

Features learned without labels are useful if few labels suffice for a linear boundary, or if neighbors share a class.
Every classifier is fitted to R random subsets of the labeled training images, the same subsets for all features, and
tested on the same M images. The correctness c_rm in {0, 1} of subset r on image m is modeled as
mu + a_r + b_m + e_rm, with crossed random effects of subset and image, and the variance of the mean accuracy is

    Var(c..)  =  s_a^2 / R  +  s_b^2 / M  +  s_e^2 / (R M).

The second term, the binomial error of the test images, does not shrink with R, since all subsets share them. The mean
squares of the two-way layout give an unbiased estimate, (MS_subsets + MS_images - MS_residual) / (R M): Searle,
Casella, McCulloch, "Variance Components", Wiley, 1992, chapter 4.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pyro_vae.evaluate.annealing.hmc import Progress
from pyro_vae.trace import derive_seed

Array = np.ndarray
Pair = tuple[Array, Array]

LABEL_BUDGETS = (10, 100, 1000)
_NUM_SUBSETS = 10
_MAX_NEIGHBORS = 5
_MAX_ITERATIONS = 200


class Accuracy(NamedTuple):
    """Mean test accuracy, with its standard error, of a classifier trained on a number of labels."""

    features: str
    classifier: str
    labels: int
    accuracy: float
    se: float


def mean_accuracy(correct: Array) -> tuple[float, float]:
    """Return the mean of correctness (R, M), and its standard error, over R training subsets and M test images.

    The error accounts for other subsets of the same training images and for other test images. For R = 1, the subset
    of all training images, it is the binomial error of the test images. For M = 1 it is NaN.
    """
    num_subsets, num_images = correct.shape
    mean = correct.mean()
    if num_images == 1:
        return float(mean), math.nan
    subset_means, image_means = correct.mean(1, keepdims=True), correct.mean(0, keepdims=True)
    mean_squares = num_subsets * image_means.var(ddof=1)
    if num_subsets > 1:
        rest = np.square(correct - subset_means - image_means + mean).sum() / ((num_subsets - 1) * (num_images - 1))
        mean_squares += num_images * subset_means.var(ddof=1) - rest
    return float(mean), math.sqrt(max(0.0, mean_squares) / (num_subsets * num_images))


def labeled_subsets(
    classes: Array, seed: int, budgets: Sequence[int] = LABEL_BUDGETS, num_subsets: int = _NUM_SUBSETS
) -> dict[int, list[Array]]:
    """Draw class-balanced random subsets of the training images.

    Args:
        classes: Classes of the training images (N,).
        seed: Random seed.
        budgets: Numbers of labels. Those of N or more are omitted.
        num_subsets: Number of subsets per budget, R.

    Returns:
        {number of labels: index arrays of R subsets}, and last the single set of all N images.
    """
    num_images = len(classes)
    subsets = {}
    for budget in (budget for budget in budgets if budget < num_images):
        generator = np.random.default_rng([seed, budget])
        subsets[budget] = [_subset(classes, budget, generator) for _ in range(num_subsets)]
    return {**subsets, num_images: [np.arange(num_images)]}


def _subset(classes: Array, budget: int, generator: np.random.Generator) -> Array:
    order = generator.permutation(len(classes))
    # Rank of each image within its class. Sorting by rank interleaves the classes until the smaller ones run out.
    rank = np.empty(len(classes), int)
    for label in np.unique(classes):
        members = order[classes[order] == label]
        rank[members] = np.arange(len(members))
    return np.lexsort((generator.random(len(classes)), rank))[:budget]


def principal_components(train: Array, test: Array, num_components: int, seed: int = 0) -> Pair:
    """Project training and test features (N, d), (M, d) onto the leading principal components of the former."""
    from sklearn.decomposition import PCA  # imported on use: scikit-learn takes seconds to import

    random_state = derive_seed(seed, "principal components") % 2**32  # the largest that NumPy's generator takes
    components = PCA(min(num_components, *train.shape), random_state=random_state).fit(train)
    return components.transform(train), components.transform(test)


def linear_head(features: Array, classes: Array) -> Pair:
    """Fit multinomial logistic regression to labeled features (L, d), with an L2 penalty of C = 1.

    The features are divided by one global scale, so that their variance is 1 on average. Scales per feature would
    amplify unused latent units and pixels that are rarely on. The fit does not depend on the location, the global
    scale or the rotation of the features.

    Returns:
        Weights (d, C) and biases (C,) of the logits of the classes that occur, in increasing order.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    loc, scale = features.mean(0), math.sqrt(features.var(0).mean()) or 1.0
    model = LogisticRegression(max_iter=_MAX_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # max_iter bounds the time
        model.fit((features - loc) / scale, classes)
    weight, bias = model.coef_.T / scale, model.intercept_
    if len(bias) == 1:  # two classes: split the log-odds between both logits
        weight, bias = (np.concatenate([-array, array], -1) / 2 for array in (weight, bias))
    return weight, bias - loc @ weight


def logistic(train: Array, classes: Array, test: Array) -> Array:
    """Return the test classes (M,) that the logistic regression of `linear_head` predicts."""
    weight, bias = linear_head(train, classes)
    return np.unique(classes)[(test @ weight + bias).argmax(1)]


def k_nearest_neighbors(train: Array, classes: Array, test: Array) -> Array:
    """Return the majority class (M,) of the k nearest labeled images by Euclidean distance.

    k is 5, or the number of labels per class if that is lower: with more neighbors, other classes would outvote the
    right one. It is not tuned, which would cost labels.
    """
    from sklearn.neighbors import KNeighborsClassifier

    labels_per_class = len(classes) // len(np.unique(classes))
    return (
        KNeighborsClassifier(min(_MAX_NEIGHBORS, labels_per_class), algorithm="brute").fit(train, classes).predict(test)
    )


# Functions of labeled features (L, d), their classes (L,) and test features (M, d).
CLASSIFIERS: dict[str, Callable[[Array, Array, Array], Array]] = {"logistic": logistic, "kNN": k_nearest_neighbors}


def probe(
    features: Mapping[str, Pair], classes: Pair, subsets: Mapping[int, Sequence[Array]], progress: Progress = iter
) -> list[Accuracy]:
    """Fit every classifier to every subset of every kind of features.

    Args:
        features: {name: (training features (N, d), test features (M, d))}.
        classes: Classes of the training images (N,), at least two different ones, and of the test images (M,).
        subsets: {number of labels: index arrays of training images}, as returned by `labeled_subsets`.
        progress: Wrapper of the loop over pairs of features and classifiers, e.g. `tqdm`.

    Returns:
        One row per kind of features, classifier and number of labels.
    """
    rows = []
    for (name, (train, test)), classifier in progress(list(itertools.product(features.items(), CLASSIFIERS))):
        for num_labels, draws in subsets.items():
            predictions = [CLASSIFIERS[classifier](train[indices], classes[0][indices], test) for indices in draws]
            correct = np.array(predictions) == classes[1]
            rows.append(Accuracy(name, classifier, num_labels, *mean_accuracy(correct)))
    return rows
