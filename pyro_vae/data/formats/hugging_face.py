r"""Folders written by `Dataset.save_to_disk` and `DatasetDict.save_to_disk` of Hugging Face's `datasets`.

The folder of a `Dataset` contains state.json, which lists the files of Arrow streams in the same folder, and
dataset_info.json. The folder of a `DatasetDict` contains dataset_dict.json, which lists a subfolder for each split.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from pyro_vae.data.collection import Collection
from pyro_vae.data.formats.arrow import Saved, open_streams
from pyro_vae.data.formats.arrow_tables import from_parts
from pyro_vae.data.formats.decoding import Options
from pyro_vae.data.formats.keeping import Cache
from pyro_vae.data.splits import Shares
from pyro_vae.errors import DataError
from pyro_vae.text import printable

_LOG = logging.getLogger("pyro_vae")
_DICTIONARY, _STATE, _INFO = "dataset_dict.json", "state.json", "dataset_info.json"
_OURS = {"train": "train", "validation": "valid", "valid": "valid", "val": "valid", "test": "test"}


def is_saved(path: Path) -> bool:
    """Return whether a path is a folder written by `save_to_disk`."""
    return (path / _DICTIONARY).is_file() or ((path / _STATE).is_file() and (path / _INFO).is_file())


def from_saved(path: Path, options: Options, splits: Shares, cache: Cache) -> Collection:
    """Read a folder for which `is_saved` is true.

    Args:
        path: Path of the folder. Its splits train, test and validation (or valid, val) are used; others are ignored,
            and logged. If there is no validation split, it is split off from the training data; if there is only a
            training split, it is split by content.
        options: Options for image files.
        splits: Fractions of training, validation and test data, if the data are not split already; see `from_arrays`.
        cache: Cache of decoded images.

    Raises:
        DataError: If a file is missing, damaged or outside the folder, or the splits are not supported; or see
            `from_parts`.
    """
    if not (path / _DICTIONARY).is_file():
        return from_parts({"train": _part(path)}, path, options, splits, cache)
    names = [str(name) for name in _list(path / _DICTIONARY, "splits")]
    known = [name for name in names if name in _OURS]
    ours = {_OURS[name] for name in known}
    if len(ours) < len(known) or ours not in ({"train"}, {"train", "test"}, {"train", "valid", "test"}):
        listed = ", ".join(map(printable, names)) or "none"
        raise DataError(f"{path} has splits {listed}; give train, train and test, or these and validation.")
    if len(known) < len(names):
        _LOG.warning("Left out: splits %s of %s", ", ".join(printable(n) for n in names if n not in known), path)
    return from_parts({_OURS[name]: _part(path / name) for name in known}, path, options, splits, cache)


def _part(folder: Path) -> Saved:
    """Open the folder of a `Dataset`."""
    path = folder / _STATE
    state = _object(path)
    if any(value for key, value in state.items() if key.startswith("_indices")):
        raise DataError(f"{path}: the rows are selected by an index file; save the data set with a newer version.")
    names: list[Any] = [file.get("filename") if isinstance(file, dict) else None for file in _list(path, "_data_files")]
    for name in names:
        if not _is_plain(name):
            raise DataError(f"{path} names {printable(str(name))}, which is not a file of the folder; replace it.")
    if not names:
        raise DataError(f"{path} names no data files; replace it.")
    return open_streams(str(folder), [folder / name for name in names])


def _is_plain(name: Any) -> bool:
    """Return whether a name is a plain file name. An untrusted data set might refer to any file of the system."""
    return isinstance(name, str) and Path(name).name == name and "\0" not in name and "\\" not in name


def _list(path: Path, key: str) -> list[Any]:
    value = _object(path).get(key)
    if not isinstance(value, list):
        raise DataError(f"{path} has no list {key}; replace it.")
    return value


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        text = error.strerror if isinstance(error, OSError) else str(error)
        reason = printable(" ".join(str(text).split())[:120])
        raise DataError(f"{path} cannot be read ({reason}); repair or replace it.") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} is not a JSON object; replace it.")
    return value
