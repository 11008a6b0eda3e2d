r"""Images that do not belong: how unusual their log p(x) is among images of the model's own kind."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pyro_vae.errors import UserError

Array = np.ndarray


class OutlierPValues(NamedTuple):
    """P-values of N images, (N,) each, uniform up to ties for images of the reference's kind.

    `low_likelihood` is small where few reference images are less likely. `atypical` is small where few lie as far
    out on either side: an image that is too likely is as atypical, the finding of Nalisnick, Matsukawa, Teh, Gorur,
    Lakshminarayanan, "Do Deep Generative Models Know What They Don't Know?", ICLR 2019
    (https://arxiv.org/abs/1810.09136), whose models of photographs took house numbers for likely ones.
    """

    low_likelihood: Array
    atypical: Array


def outlier_p_values(log_likelihood: Array, reference: Array) -> OutlierPValues:
    """Rank images by log p(x) among reference images that the model has not been fitted to.

    Args:
        log_likelihood: of the images in question (N,), nats.
        reference: of held-out images of the kind the model was fitted to (M,), by the same estimator.

    Raises:
        ValueError: a value is NaN.
    """
    if np.isnan(log_likelihood).any() or np.isnan(reference).any():
        raise UserError("A log-likelihood is NaN: leave its image out.")
    ordered, total = np.sort(reference), len(reference) + 1
    lower = (np.searchsorted(ordered, log_likelihood, side="right") + 1) / total
    upper = (len(ordered) - np.searchsorted(ordered, log_likelihood, side="left") + 1) / total
    return OutlierPValues(lower, np.minimum(1.0, 2 * np.minimum(lower, upper)))
