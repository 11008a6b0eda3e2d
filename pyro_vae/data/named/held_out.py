r"""Validation images for data sets without a validation split: the last training images in file order."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from pyro_vae.data.images import Images
from pyro_vae.data.labels import Labels
from pyro_vae.data.named.files import REPLACE
from pyro_vae.errors import DataError


def hold_out(
    name: str, where: Path, train: Tensor, test: Tensor, classes: tuple[Tensor, Tensor] | None, number: int
) -> Images:
    """Return a data set whose validation images are the last training images.

    Args:
        name: Name of the data set.
        where: Location of its files, for error messages.
        train: Training and validation images, uint8, shape (N, *pixels).
        test: Test images.
        classes: Classes of `train` and of `test`, int64, shape (N, 1) each; or None.
        number: Number of validation images.

    Raises:
        DataError: If no training images would be left.
    """
    if len(train) <= number:
        required = f"at least {number + 1} are required"
        raise DataError(f"{where} holds {len(train)} training images, but {required}. {REPLACE}")
    labels = None if classes is None else Labels(("class",), classes[0][:-number], classes[0][-number:], classes[1])
    return Images(name, train[:-number], train[-number:], test, labels)
