r"""Reading of saved configurations. They are untrusted input: parsed strictly, and rejected with a one-line error."""

from __future__ import annotations

import json
import reprlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any
from unicodedata import category

from pyro_vae.config import Config
from pyro_vae.errors import UserError

_JSON_TYPES: dict[type, tuple[type, ...]] = {
    str: (str,),
    int: (int,),
    float: (int, float),
    bool: (bool,),
    type(Path()): (str,),
    type(None): (int, type(None)),  # a count whose default depends on the data set
    tuple: (list, tuple),
}
# Fields that are missing in runs of earlier versions, which behaved as with the default.
_ADDED = (
    "labels",
    "image_size",
    "channels",
    "skip_bad",
    "splits",
    "depth",
    "width",
    "optimizer",
    "ema",
    "deterministic_shards",
)


def add_missing_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a saved configuration, with defaults for fields that its version did not have."""
    defaults = Config().to_json()
    return {name: defaults[name] for name in _ADDED if name not in values} | dict(values)


def read_config(path: Path) -> Config:
    """Read a saved configuration.

    Raises:
        UserError: If the file is not a valid configuration. The message names the file and the field at fault.
    """
    values = read_json(path, "a configuration")
    if isinstance(values, dict):
        values = add_missing_fields(values)
    known = {field.name: field.default for field in fields(Config)}
    if not isinstance(values, dict) or values.keys() != known.keys():
        mismatched = sorted(values.keys() ^ known.keys()) if isinstance(values, dict) else [type(values).__name__]
        named = ", ".join(reprlib.repr(key).strip("'") for key in mismatched[:5])
        rest = f" and {len(mismatched) - 5} more" if len(mismatched) > 5 else ""
        raise UserError(f"{path} is not a configuration of this version: unknown or missing {named}{rest}.")
    for name, default in known.items():
        value = values[name]
        valid = isinstance(value, _JSON_TYPES[type(default)])
        valid = valid and isinstance(value, bool) == isinstance(default, bool)  # in Python, bool is a subclass of int
        if not valid or not _moderate(value):
            raise UserError(f"{path} is not a configuration: {name} is {reprlib.repr(value)}.")
    try:
        return Config(**{**values, "data_root": Path(values["data_root"]), "splits": tuple(values["splits"])})
    except ValueError as error:
        raise UserError(f"{path} is not a configuration: {error}") from error


def _moderate(value: Any) -> bool:
    """Return whether an integer fits float64 exactly, a tuple has three floats, and a string is short and printable."""
    if isinstance(value, (list, tuple)):
        return len(value) == 3 and all(type(entry) is float for entry in value)
    if isinstance(value, int):
        return abs(value) < 2**53
    return not isinstance(value, str) or (len(value) < 4096 and not any(category(c) == "Cc" for c in value))


def read_json(path: Path, what: str) -> Any:
    """Parse strict JSON: reject NaN and duplicate keys, of which Python would silently use the last.

    Args:
        path: File to read.
        what: What it contains, for error messages.

    Raises:
        UserError: If the file cannot be read, or is not JSON. The message names it.
    """

    def constant(name: str) -> None:
        raise UserError(f"{name} is not valid JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            ((key, count),) = Counter(key for key, _ in pairs).most_common(1)
            raise UserError(f"{reprlib.repr(key)} occurs {count} times")
        return values

    try:
        return json.loads(path.read_bytes(), parse_constant=constant, object_pairs_hook=unique)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not {what}: it is not JSON ({error}).") from error
