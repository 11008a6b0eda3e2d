r"""Tables of Arrow as data sets: a column of images and one of labels, or columns of numbers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pyro_vae.data.assembly import from_arrays
from pyro_vae.data.collection import Collection
from pyro_vae.data.formats import columns, tables
from pyro_vae.data.formats.arranging import arrange, make_images
from pyro_vae.data.formats.array_files import colors_first
from pyro_vae.data.formats.columns import Part
from pyro_vae.data.formats.decoding import Options, decode
from pyro_vae.data.images import Images
from pyro_vae.data.numbers import Numbers
from pyro_vae.data.splits import Shares
from pyro_vae.errors import DataError
from pyro_vae.text import printable

_LOG = logging.getLogger("pyro_vae")
_LABELS = (*tables.LABELS, "fine_label")  # CIFAR-100's, whose coarse_label is another


def from_parts(parts: Mapping[str, Part], path: Path, options: Options, splits: Shares) -> Collection:
    """Make a data set of tables.

    A column of images holds image files (a struct of bytes and path, as Hugging Face has them) or pixels (nested lists
    of uint8). Beside it, integers or words in a column that is called label, labels, class, target, y or fine_label are
    labels, and the log says what is left out. A table without images is one of numbers; see `tables.from_frame`.

    Args:
        parts: "train"; and perhaps "test"; and perhaps "valid". The first alone is split by content.
        path: of all.
        options: of image files; pixels and numbers are taken as they are.
        splits: shares of training, validation and test data; see `from_arrays`.

    Raises:
        DataError: no columns that are known, several of images or of labels, a row without either, an option that does
            not apply; see `read_image`, `decode` and `from_arrays`; or see `from_frame`.
    """
    for part in parts.values():
        if not part.table.num_rows:
            raise DataError(f"{part.where} holds no rows.")
        if len(set(part.table.column_names)) < part.table.num_columns:
            raise DataError(f"{part.where} has two columns of one name; rename them.")
    schema = parts["train"].table.schema
    images = [field.name for field in schema if columns.holds_files(field.type) or columns.holds_pixels(field.type)]
    if len(images) > 1:
        raise DataError(f"{path}: {_listed(images)} hold images, and one column may; leave out the others.")
    if not images:
        options.refuse(path)
        return _numbers(parts, path, splits)
    called = [field for field in schema if field.name.lower() in _LABELS]
    labels = [field.name for field in called if columns.is_plain(field.type, labels=True)]
    if len(labels) > 1:
        raise DataError(f"{path}: {_listed(labels)} are called as labels are, and one may be; leave out the others.")
    _check_types(parts, images + labels)
    if others := [name for name in schema.names if name not in images + labels]:
        _LOG.warning("Left out: columns %s of %s", ", ".join(map(printable, others)), path)
    name = path.name if path.is_dir() else path.stem
    known = {each: columns.read_labels(part, labels[0]) if labels else None for each, part in parts.items()}
    if columns.holds_files(schema.field(images[0]).type):
        return _from_files(parts, images[0], known, options, splits, name)
    options.refuse(path)
    return _from_pixels(parts, images[0], known, splits, name)


def _from_files(
    parts: Mapping[str, Part], column: str, labels: Mapping[str, Any], options: Options, splits: Shares, name: str
) -> Images:
    options.check()
    sources = [source for part in parts.values() for source in columns.read_files(part, column)]
    split_of = [split for split, part in parts.items() for _ in range(part.table.num_rows)]
    store: list[np.ndarray] = []
    found = decode(sources, options.size, options.skip_bad, store)
    classes = None if labels["train"] is None else np.concatenate([labels[each] for each in parts])[found.kept].tolist()
    arranged = arrange(
        store,
        options.channels or (3 if found.colored else 1),
        [split_of[index] for index in found.kept] if len(parts) > 1 else None,
        classes,
        number=len(found.kept),
        shares=splits,
        name=name,
    )
    return make_images(name, arranged.stacked(store), arranged.codes, arranged.how_split)


def _from_pixels(
    parts: Mapping[str, Part], column: str, labels: Mapping[str, Any], splits: Shares, name: str
) -> Images:
    pixels = {each: colors_first(columns.read_pixels(part, column)) for each, part in parts.items()}
    return from_arrays(
        pixels["train"],
        pixels.get("test"),
        labels=labels["train"],
        test_labels=labels.get("test"),
        valid=pixels.get("valid"),
        valid_labels=labels.get("valid"),
        splits=splits,
        name=name,
    )


def _check_types(parts: Mapping[str, Part], names: list[str]) -> None:
    first = parts["train"]
    for part in parts.values():
        for name in names:
            kind = first.table.schema.field(name).type
            if name not in part.table.column_names or part.table.schema.field(name).type != kind:
                raise DataError(f"{part.where} has no column {printable(name)} of type {kind}, and {first.where} has.")


def _numbers(parts: Mapping[str, Part], path: Path, splits: Shares) -> Numbers:
    for part in parts.values():
        for field in part.table.schema:
            if not columns.is_plain(field.type):
                raise DataError(
                    f"{part.where}: {printable(field.name)} is of type {printable(str(field.type))}, neither images "
                    "(structs of bytes and path, or lists of uint8) nor numbers nor words; leave it out."
                )
    frames = {each: part.table.to_pandas() for each, part in parts.items()}
    return tables.from_frame(frames["train"], path, splits, valid=frames.get("valid"), test=frames.get("test"))


def _listed(names: list[str]) -> str:
    return ", ".join(map(printable, names[:3]))
