r"""Arrow tables as data sets: a column of images and optionally one of labels, or columns of numbers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from pyro_vae.data.assembly import from_arrays
from pyro_vae.data.collection import Collection
from pyro_vae.data.formats import columns, tables
from pyro_vae.data.formats.arranging import SPLITS
from pyro_vae.data.formats.array_files import colors_first
from pyro_vae.data.formats.arrow import Saved
from pyro_vae.data.formats.cache import Ready, make_key
from pyro_vae.data.formats.columns import Part
from pyro_vae.data.formats.decoding import Options
from pyro_vae.data.formats.image_files import version
from pyro_vae.data.formats.keeping import Cache, ImageFiles, name_of, ready_arrays
from pyro_vae.data.images import Images
from pyro_vae.data.numbers import Numbers
from pyro_vae.data.splits import Shares
from pyro_vae.errors import DataError
from pyro_vae.text import printable

_LOG = logging.getLogger("pyro_vae")
_LABELS = (*tables.LABELS, "fine_label")  # the classes of CIFAR-100; its coarse_label is left out


def from_parts(parts: Mapping[str, Saved], path: Path, options: Options, splits: Shares, cache: Cache) -> Collection:
    """Return a data set from tables.

    A column of images contains image files (a struct of bytes and path, as Hugging Face stores them) or pixels (nested
    lists of uint8). Integers or strings in a column named label, labels, class, target, y or fine_label are its labels;
    all other columns are ignored, and logged. A table without images is a table of numbers; see `tables.from_frame`.

    Args:
        parts: Tables of the splits: "train", "train" and "test", or "train", "valid" and "test". "train" is split by
            content if it is the only one.
        path: Path of the data set.
        options: Options for image files. They do not apply to pixels and numbers.
        splits: Fractions of training, validation and test data; see `from_arrays`.
        cache: Cache of decoded images. Rows are read only if their images are not in it.

    Raises:
        DataError: If there are no suitable columns, several columns of images or of labels, a row without an image or a
            label, or an option that does not apply; or see `read_image`, `decode`, `from_arrays` and `from_frame`.
    """
    for part in parts.values():
        if len(set(part.schema.names)) < len(part.schema.names):
            raise DataError(f"{part.where} has two columns of the same name; rename them.")
    schema = parts["train"].schema
    images = [field.name for field in schema if columns.holds_files(field.type) or columns.holds_pixels(field.type)]
    if len(images) > 1:
        raise DataError(f"{path}: {_listed(images)} hold images, but only one column may; leave out the others.")
    if not images:
        options.refuse(path)
        return _numbers(_rows(parts), path, splits)
    named = [field for field in schema if field.name.lower() in _LABELS]
    labels = [field.name for field in named if columns.is_plain(field.type, labels=True)]
    if len(labels) > 1:
        raise DataError(f"{path}: {_listed(labels)} are named like labels, but only one may be; leave out the others.")
    _check_types(parts, images + labels)
    if others := [name for name in schema.names if name not in images + labels]:
        _LOG.warning("Left out: columns %s of %s", ", ".join(map(printable, others)), path)
    return _Given(path, parts, images[0], labels[0] if labels else None, options, splits).images(cache)


class _Given(NamedTuple):
    """Tables with a column of images and optionally one of labels. The methods raise the errors of `from_parts`."""

    path: Path
    saved: Mapping[str, Saved]
    column: str
    labels: str | None
    options: Options
    splits: Shares

    def key(self) -> str:
        """Return the key of the cache entry; see `make_key`."""
        files = [file for part in self.saved.values() for file in part.files]
        numbers = [[split, len(part.files)] for split, part in self.saved.items()]
        return make_key(self.path, files, ["tables", version(), *self.options, numbers], self.splits)

    def images(self, cache: Cache) -> Images:
        """Return the images, from the cache if possible."""
        of_files = columns.holds_files(self.saved["train"].schema.field(self.column).type)
        if of_files:
            self.options.check()
        else:
            self.options.refuse(self.path)

        def decode(folder: Path, file: IO[bytes]) -> Ready:
            parts = _rows(self.saved, folder)
            return self._files(parts).ready(file) if of_files else self._ready_pixels(parts, file)

        kept = cache.images(self.path, self.key, decode)
        if kept is not None:
            return kept
        parts = _rows(self.saved)
        return self._files(parts).in_memory() if of_files else self._pixels(parts)

    def _files(self, parts: Mapping[str, Part]) -> ImageFiles:
        sources = [source for part in parts.values() for source in columns.read_files(part, self.column)]
        split_of = [split for split, part in parts.items() for _ in range(part.table.num_rows)]
        labels = self._labels(parts)

        def known(kept: list[int]) -> tuple[list[str] | None, list[Any] | None]:
            classes = np.concatenate(list(labels.values()))[kept].tolist() if labels else None
            return [split_of[index] for index in kept] if len(parts) > 1 else None, classes

        return ImageFiles(self.path, sources, self.options, self.splits, known)

    def _ready_pixels(self, parts: Mapping[str, Part], file: IO[bytes]) -> Ready:
        labels = self._labels(parts)
        pieces = {name: map(colors_first, columns.pieces_of_pixels(part, self.column)) for name, part in parts.items()}
        return ready_arrays(
            file, list(map(pieces.get, SPLITS)), list(map(labels.get, SPLITS)), self.splits, name_of(self.path)
        )

    def _pixels(self, parts: Mapping[str, Part]) -> Images:
        pixels = {name: colors_first(columns.read_pixels(part, self.column)) for name, part in parts.items()}
        labels = self._labels(parts)
        return from_arrays(
            pixels["train"],
            pixels.get("test"),
            labels=labels.get("train"),
            test_labels=labels.get("test"),
            valid=pixels.get("valid"),
            valid_labels=labels.get("valid"),
            splits=self.splits,
            name=name_of(self.path),
        )

    def _labels(self, parts: Mapping[str, Part]) -> dict[str, np.ndarray]:
        """Return the labels of each split; empty if there are none."""
        return {name: columns.read_labels(part, self.labels) for name, part in parts.items() if self.labels is not None}


def _rows(parts: Mapping[str, Saved], folder: Path | None = None) -> dict[str, Part]:
    """Read the rows of tables. See `Saved.read` for `folder`."""
    loaded = {name: Part(part.where, part.read(folder)) for name, part in parts.items()}
    for part in loaded.values():
        if not part.table.num_rows:
            raise DataError(f"{part.where} holds no rows.")
    return loaded


def _check_types(parts: Mapping[str, Saved], names: list[str]) -> None:
    first = parts["train"]
    for part in parts.values():
        for name in names:
            kind = first.schema.field(name).type
            if name not in part.schema.names or part.schema.field(name).type != kind:
                raise DataError(f"{part.where} has no column {printable(name)} of type {kind}, but {first.where} has.")


def _numbers(parts: Mapping[str, Part], path: Path, splits: Shares) -> Numbers:
    for part in parts.values():
        for field in part.table.schema:
            if not columns.is_plain(field.type):
                raise DataError(
                    f"{part.where}: {printable(field.name)} is of type {printable(str(field.type))}, which is not "
                    "images (structs of bytes and path, or lists of uint8), numbers or strings; leave it out."
                )
    frames = {name: part.table.to_pandas() for name, part in parts.items()}
    return tables.from_frame(frames["train"], path, splits, valid=frames.get("valid"), test=frames.get("test"))


def _listed(names: list[str]) -> str:
    return ", ".join(map(printable, names[:3]))
