r"""Outlier detection: p-values of the log p(x) of images among held-out images of the training distribution."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pyro_vae.errors import UserError

Array = np.ndarray


class OutlierPValues(NamedTuple):
    """P-values of N images, shape (N,) each, uniform up to ties for images from the reference distribution.

    Images that are too likely are atypical as well: in Nalisnick, Matsukawa, Teh, Gorur, Lakshminarayanan, "Do Deep
    Generative Models Know What They Don't Know?", ICLR 2019 (https://arxiv.org/abs/1810.09136), models of CIFAR-10
    assign higher likelihoods to house numbers (SVHN).

    Attributes:
        low_likelihood: Lower-tail p-value, small if few reference images are less likely.
        atypical: Two-sided p-value, small if few reference images are as extreme on either side.
    """

    low_likelihood: Array
    atypical: Array


def outlier_p_values(log_likelihood: Array, reference: Array) -> OutlierPValues:
    """Rank images by log p(x) among reference images that were not used in training.

    The lower-tail p-value is (1 + number of reference images that are at most as likely) / (M + 1).

    Args:
        log_likelihood: log p(x) of the images to test in nats, shape (N,).
        reference: log p(x) of held-out images of the training distribution, by the same estimator, shape (M,).

    Raises:
        ValueError: A value is NaN.
    """
    if np.isnan(log_likelihood).any() or np.isnan(reference).any():
        raise UserError("A log-likelihood is NaN; omit the image.")
    ordered, total = np.sort(reference), len(reference) + 1
    lower = (np.searchsorted(ordered, log_likelihood, side="right") + 1) / total
    upper = (len(ordered) - np.searchsorted(ordered, log_likelihood, side="left") + 1) / total
    return OutlierPValues(lower, np.minimum(1.0, 2 * np.minimum(lower, upper)))
