r"""Validation images of data sets that come without: the last training images, in the order of the file."""

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
    """Make a data set whose validation images are the last training images.

    Args:
        name: of the data set.
        where: its files are.
        train: training and validation images, uint8 (N, *pixels).
        test: test images.
        classes: of both, int64 (N, 1); None without labels.
        number: of validation images.

    Raises:
        DataError: no training image is left.
    """
    if len(train) <= number:
        least = f"{number + 1} are the least"
        raise DataError(f"{where} holds {len(train)} training images, too few: {least}. {REPLACE}")
    labels = None if classes is None else Labels(("class",), classes[0][:-number], classes[0][-number:], classes[1])
    return Images(name, train[:-number], train[-number:], test, labels)
