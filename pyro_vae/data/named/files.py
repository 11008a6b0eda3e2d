r"""Files of data sets below --data-root: there, or downloaded; read, or refused in one line."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyro_vae.errors import DataError

REMEDY = "Delete damaged files to download them again, or name another --data-root."
REPLACE = "Repair or replace it, or name another --data-root."
_LOG = logging.getLogger("pyro_vae")


def require(
    folder: Path, names: Sequence[str], source: str = "", fetch: Callable[[Any], object] | None = None
) -> list[Path]:
    """Return the paths of files in a folder, after downloading them where one is absent.

    Args:
        folder: of the files.
        names: of the files.
        source: where they come from, in words.
        fetch: downloads them, given `torchvision.datasets`. None: nothing is downloaded.

    Raises:
        DataError: a file is absent, and not downloaded or the download failed.
    """
    absent = next((name for name in names if not os.path.isfile(folder / name)), None)
    if absent is not None and fetch is None:
        what = f" ({source}): put it there, or" if source else ":"
        raise DataError(f"{folder} has no {absent}{what} name the folder of your data sets by --data-root.")
    if absent is not None and fetch is not None:
        import torchvision  # on use: it takes seconds to import

        try:
            fetch(torchvision.datasets)
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")
            raise DataError(f"{folder} has no {absent}, and downloading failed ({reason}). {REMEDY}") from error
    return [folder / name for name in names]


def read_bytes(path: Path) -> np.ndarray:
    """Return what a file holds, uint8 (bytes,).

    Raises:
        DataError: it cannot be read.
    """
    try:
        return np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). Name another --data-root.") from error


def warn_of_other_sizes(where: Path, name: str, found: Mapping[str, int], published: Sequence[int]) -> None:
    """Log one line if the numbers of images, by the name of their split, are not those of the published data set."""
    if list(found.values()) != list(published):
        *first, last = (f"{number} {split}" for split, number in found.items())
        _LOG.warning(f"{where} is not {name}: it holds {', '.join(first)} and {last} images.")
