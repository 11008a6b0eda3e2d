r"""Access to the files of named data sets below --data-root: checks, downloads, and one-line errors."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from pyro_vae.errors import DataError

REMEDY = "Delete damaged files to download them again, or set another --data-root."
REPLACE = "Repair or replace it, or set another --data-root."
_LOG = logging.getLogger("pyro_vae")


def require(
    folder: Path, names: Sequence[str], source: str = "", fetch: Callable[[Any], object] | None = None
) -> list[Path]:
    """Return the paths of files in a folder, and download them if one is missing.

    Args:
        folder: Folder of the files.
        names: Names of the files.
        source: Origin of the files, for error messages.
        fetch: Function that downloads the files, called with `torchvision.datasets`. If None, nothing is downloaded.

    Raises:
        DataError: If a file is missing, and is not downloaded or the download fails, or all files are below a folder
            near --data-root.
    """
    absent = next((name for name in names if not os.path.isfile(folder / name)), None)
    if absent is not None and (other := _root_nearby(folder, names)):
        raise DataError(f"{folder} has no {absent}, but the files are below {other}: use --data-root {other}.")
    if absent is not None and fetch is None:
        what = f" ({source}): put it there, or" if source else ":"
        raise DataError(f"{folder} has no {absent}{what} set --data-root to the folder of your data sets.")
    if absent is not None and fetch is not None:
        import torchvision  # lazily: importing it takes seconds

        new = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            fetch(torchvision.datasets)
        except Exception as error:
            for path in new:  # empty ones that the download has made, innermost first
                with suppress(OSError, ValueError):  # or a name that no folder can have
                    path.rmdir()
            reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")
            raise DataError(f"{folder} has no {absent}, and downloading failed ({reason}). {REMEDY}") from error
    return [folder / name for name in names]


def _root_nearby(folder: Path, names: Sequence[str]) -> Path | None:
    """Return the --data-root that was meant, if the present one is a folder of the data set, or the one around it.

    Args:
        folder: Folder of the files below the present root, <root>/<data set>, or <root>/<data set>/raw.
        names: Names of the files.
    """
    root = Path(os.path.abspath(folder.parent.parent if folder.name == "raw" else folder.parent))
    below = Path(*folder.parts[-2:]) if folder.name == "raw" else Path(folder.name)
    try:
        inner = [path for path in sorted(root.iterdir()) if path.is_dir()]
    except (OSError, ValueError):  # no such folder, or a name that no file can have
        inner = []
    depths = [depth for depth in (1, 2) if root.parts[-depth:] == below.parts[:depth]]
    roots = [root.parents[depth - 1] for depth in depths] + inner
    return next((each for each in roots if all(os.path.isfile(each / below / name) for name in names)), None)


def read_bytes(path: Path) -> np.ndarray:
    """Return the content of a file, uint8, shape (bytes,).

    Raises:
        DataError: If the file cannot be read.
    """
    try:
        return np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). Set another --data-root.") from error


def warn_of_other_sizes(where: Path, name: str, sizes: Mapping[str, int], published: Sequence[int]) -> None:
    """Log a warning if the sizes of the splits, by name, differ from those of the published data set."""
    if list(sizes.values()) != list(published):
        *first, last = (f"{number} {split}" for split, number in sizes.items())
        _LOG.warning(f"{where} is not {name}: it holds {', '.join(first)} and {last} images.")
