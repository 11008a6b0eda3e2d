r"""Loading of your own images, in any format: from their cache entry, or decoded in chunks into a new one."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch

from pyro_vae.data import npy
from pyro_vae.data.arrays import to_uint8
from pyro_vae.data.assembly import find_splits
from pyro_vae.data.formats.arranging import Arranged, arrange, make_images
from pyro_vae.data.formats.cache import Entry, Kept, Ready
from pyro_vae.data.formats.decoding import InFile, Options, Store, decode
from pyro_vae.data.formats.image_files import Source
from pyro_vae.data.images import Images
from pyro_vae.data.splits import Shares

_LOG = logging.getLogger("pyro_vae")

Decode = Callable[[Path, IO[bytes]], Ready]
"""Decodes images. It is called with a folder for temporary data that may not fit into memory, and with a new file in
that folder for the images."""


class Cache(NamedTuple):
    """A cache of decoded images. The fields are `cache` and `write_cache` of `from_folder`."""

    folder: Path | str | None = None
    writable: bool = True

    def images(self, path: Path, key: Callable[[], str], decode: Decode) -> Images | None:
        """Return the images of a data set from their cache entry, which is made if it is missing.

        Args:
            path: Path of the data.
            key: Function that returns the key of the entry; see `make_key`.
            decode: Function that decodes the images of a new entry.

        Returns:
            The images; or None if there is no cache, or if the entry is missing and cannot be written, in which case
            the reason is logged.

        Raises:
            DataError: If `decode` raises it. No entry is left behind.
        """
        if self.folder is None or not (self.writable or os.path.isdir(self.folder)):
            return None
        entry = Entry(Path(self.folder), key())
        kept = entry.read()
        if kept is not None:
            for name, reason in kept.left_out:
                _LOG.warning("Left out: %s%s", path / name, reason)
        elif self.writable:
            kept = _keep(entry, key, decode)
        return None if kept is None else make_images(name_of(path), kept.parts, kept.labels, kept.how_split)


def name_of(path: Path) -> str:
    """Return the name of a data set: that of its folder, or of its file without the suffix."""
    return path.name if path.is_dir() else path.stem


def _keep(entry: Entry, key: Callable[[], str], decode: Decode) -> Kept | None:
    """Decode images into a new entry and return it, or None if it cannot be written."""
    try:
        with entry.writing() as folder:
            with (folder / "decoded").open("w+b") as file:
                entry.write(folder, decode(folder, file))
            (folder / "decoded").unlink()
            if key() != entry.path.name:
                raise OSError("files have changed while they were decoded")
        return entry.read()
    except OSError as error:
        _LOG.warning("The cache is not written (%s); images are decoded into memory.", " ".join(str(error).split()))
        return None


class ImageFiles(NamedTuple):
    """Image files, in a folder or in a table, and the settings that make a data set of them."""

    path: Path
    """Path of the folder or the table."""
    files: Sequence[Source]
    options: Options
    shares: Shares
    """Fractions of training, validation and test images; see `from_arrays`."""
    known: Callable[[list[int]], tuple[Sequence[str] | None, Sequence[Any] | None]]
    """Function that maps the indices of the usable files to their splits and classes, as `arrange` takes them."""

    def in_memory(self) -> Images:
        """Decode the images into memory. See `decode` and `arrange` for the errors."""
        store: list[np.ndarray] = []
        arranged, _ = self._arranged(store)
        return make_images(name_of(self.path), arranged.stacked(store), arranged.codes, arranged.how_split)

    def ready(self, file: IO[bytes]) -> Ready:
        """Decode the images into a new file. See `decode` and `arrange` for the errors."""
        store = InFile(file)
        arranged, bad = self._arranged(store)
        left_out = []
        for index, reason in bad:
            source = self.files[index]
            where = source if isinstance(source, Path) else Path(source.table)
            left_out.append((where.relative_to(self.path).as_posix(), reason.removeprefix(str(where))))
        images = arranged.images(store, torch.cat(arranged.indices))
        return Ready(images, arranged.shape, arranged.sizes, arranged.codes, arranged.how_split, left_out)

    def _arranged(self, store: Store) -> tuple[Arranged, list[tuple[int, str]]]:
        """Decode the files into an empty store. Return the order of the images, and the unusable files with reasons."""
        decoded = decode(self.files, self.options.size, self.options.skip_bad, store)
        splits, classes = self.known(decoded.kept)
        arranged = arrange(
            store,
            self.options.channels or (3 if decoded.colored else 1),
            splits,
            classes,
            number=len(decoded.kept),
            shares=self.shares,
            name=name_of(self.path),
        )
        return arranged, decoded.left_out


def ready_arrays(
    file: IO[bytes], parts: Sequence[Iterable[np.ndarray] | None], labels: Sequence[Any], splits: Shares, name: str
) -> Ready:
    """Write arrays of images to a new file and split them, as `from_arrays` does for arrays in memory.

    Args:
        file: New file, to which the images of all parts are written in order.
        parts: Chunks (n, *pixels) of the training, validation and test images, or None; see `from_arrays`.
        labels: Labels of each part, shape (N,), or None.
        splits: Fractions of the splits, as in `from_arrays`.
        name: Name of the data set.

    Raises:
        DataError: If the images, labels or splits are invalid; see `from_arrays`.
        OSError: If the file cannot be written.
    """
    shapes = [
        None if pieces is None else _written(file, pieces, f"{name}, {split} images")
        for split, pieces in zip(("training", "validation", "test"), parts, strict=True)
    ]
    file.flush()
    header = npy.Header((file.tell(),), False, np.dtype(np.uint8))
    file.seek(0)
    mapped = torch.from_numpy(npy.map_content(file, header, name)).split([math.prod(shape or (0,)) for shape in shapes])
    given = [None if shape is None else part.view(shape) for part, shape in zip(mapped, shapes, strict=True)]
    rows, codes, how_split = find_splits(name, given, labels, splits)
    train, valid, test = (part for part, _ in rows)
    shape = Images(name, train, valid, test).pixel_shape  # validates the images before an entry is written
    indices = [torch.arange(len(part))[index].tolist() for part, index in rows]
    images = (part[index].numpy() for (part, _), split in zip(rows, indices, strict=True) for index in split)
    sizes = [len(split) for split in indices]
    return Ready(images, shape, sizes, None if codes is None else torch.cat(codes), how_split)


def _written(file: IO[bytes], pieces: Iterable[np.ndarray], name: str) -> tuple[int, ...]:
    """Write one part, and return its shape (N, *pixels)."""
    number, shape = 0, tuple[int, ...]()
    for piece in pieces:
        pixels = to_uint8(piece, name, number)
        file.write(pixels.numpy().data)
        number, shape = number + len(pixels), tuple(pixels.shape[1:])
    return number, *shape
