r"""A cache of decoded images on disk, with one entry for each data set and choice of decoding options.

An entry is a folder, named after a digest of the data and the options, and renamed to it when complete. It contains
images.npy, the concatenated images of all splits, which is memory-mapped, and entry.json, everything else and a digest.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pyro_vae.data import npy
from pyro_vae.data.formats.decoding import in_order
from pyro_vae.data.splits import Shares
from pyro_vae.errors import DataError

_LOG = logging.getLogger("pyro_vae")
_FORMAT = 2  # incremented when the entry of the same files changes
_IMAGES, _ABOUT, _UNFINISHED = "images.npy", "entry.json", ".unfinished-"
_ABANDONED = 24 * 3600  # seconds without a change after which an unfinished entry is removed
_BLOCK = 2**20
# Errors that reading untrusted JSON and arrays may raise.
_DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError)


def make_key(folder: Path, files: Sequence[Path], options: Sequence[Any], shares: Shares) -> str:
    """Return a digest of the names and contents of files. It does not depend on their location and times.

    Args:
        folder: Folder that contains the files, or the file itself.
        files: Paths of the files.
        options: All other settings that affect the images, as JSON values, except `shares`.
        shares: Fractions of the splits.
    """
    dependent = [_FORMAT, *options, [float(share) for share in shares]]
    digest = hashlib.blake2b(json.dumps(dependent).encode(), digest_size=20)
    contents = tqdm(in_order(_content, files), "files", len(files), False, disable=None)
    for path, content in zip(files, contents, strict=True):
        digest.update(json.dumps([path.relative_to(folder).as_posix(), content]).encode())
    return digest.hexdigest()


def _content(path: Path) -> str:
    try:
        if path.is_file():  # opening a named pipe would block
            with path.open("rb") as file:
                return hashlib.file_digest(file, "blake2b").hexdigest()
    except OSError:
        return "cannot be read"
    return "no file"


class Ready(NamedTuple):
    """Contents of an entry that is to be written."""

    images: Iterable[np.ndarray]
    """Pixels of all splits in order, uint8: single images, or chunks of several."""
    shape: tuple[int, ...]
    """Shape of an image."""
    sizes: Sequence[int]
    """Numbers of training, validation and test images."""
    labels: Tensor | None
    """Labels of all images, as in `Kept`."""
    how_split: str
    """Description of how the data were split, as in `Kept`."""
    left_out: Sequence[tuple[str, str]] = ()
    """Images that cannot be used, as in `Kept`."""


class Kept(NamedTuple):
    """Contents of an entry that has been read."""

    parts: tuple[Tensor, ...]
    """Training, validation and test images, uint8, shape (N, *pixels) each, memory-mapped."""
    labels: Tensor | None
    """Labels of all images, concatenated over the splits, shape (N, 1)."""
    how_split: str
    """Description of how the data were split; see `Collection`."""
    left_out: list[tuple[str, str]]
    """Images that cannot be used: their paths, relative to that of the data, and the reasons."""


class Entry:
    """An entry of a cache, which need not exist yet.

    Args:
        cache: Folder of the cache.
        key: Name of the entry; see `make_key`.
    """

    def __init__(self, cache: Path, key: str) -> None:
        self.cache = cache
        self.path = cache / key

    def read(self) -> Kept | None:
        """Return the contents of the entry, or None if it is missing or damaged. Damage is logged."""
        if not os.path.isdir(self.path):
            return None
        try:
            return self._read()
        except _DAMAGE as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            _LOG.warning("%s is damaged, and its images are decoded again (%s)", self.path, reason)
            return None

    def _read(self) -> Kept:
        path = self.path / _IMAGES
        if not (path.is_file() and (self.path / _ABOUT).is_file()):
            raise DataError("it is incomplete")
        about = json.loads((self.path / _ABOUT).read_text("utf-8"))
        digest = about.pop("digest")
        shape, sizes, labels = tuple(about["shape"]), list(about["sizes"]), about["labels"]
        with path.open("rb") as file:
            header = npy.read_header(file, _IMAGES)
            if about["key"] != self.path.name or header != npy.Header(shape, False, np.dtype(np.uint8)):
                raise DataError("it belongs to other images")
            pixels = torch.from_numpy(npy.map_content(file, header, _IMAGES))
            if digest != _digest(about, file.fileno()):
                raise DataError("its digest does not match")
        if len(sizes) != 3 or min(sizes) < 1 or sum(sizes) != len(pixels):
            raise DataError(f"split sizes {sizes} do not match {len(pixels)} images")
        codes = None if labels is None else torch.tensor(labels, dtype=torch.long).view(len(pixels), 1)
        left_out = [(str(name), str(why)) for name, why in about["left_out"]]
        return Kept(pixels.split(sizes), codes, str(about["how_split"]), left_out)

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """Yield a new folder, which atomically becomes the entry at the end. After an exception, it is removed.

        If another process has completed the entry in the meantime, that entry is kept.

        Raises:
            OSError: If the entry cannot be written.
        """
        self.cache.mkdir(parents=True, exist_ok=True)
        self._remove_abandoned()
        temporary = self.cache / f"{_UNFINISHED}{uuid4().hex}"
        temporary.mkdir()
        try:
            yield temporary
            try:
                temporary.rename(self.path)
            except OSError:
                self._replace(temporary)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _replace(self, temporary: Path) -> None:
        """Replace a damaged entry."""
        try:
            self._read()
        except _DAMAGE:
            shutil.rmtree(self.path)
            temporary.rename(self.path)

    def _remove_abandoned(self) -> None:
        """Remove unfinished entries of processes that were killed."""
        for folder in self.cache.glob(f"{_UNFINISHED}*"):
            with suppress(OSError):  # another process may be renaming or removing the folder
                changed = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
                if time.time() - changed > _ABANDONED:
                    shutil.rmtree(folder)

    def write(self, folder: Path, ready: Ready) -> None:
        """Write the files of the entry.

        Args:
            folder: The folder yielded by `writing`.
            ready: Contents of the entry.

        Raises:
            OSError: If the files cannot be written.
        """
        shape = (sum(ready.sizes), *ready.shape)
        with (folder / _IMAGES).open("w+b") as file:
            header = {"shape": shape, "fortran_order": False, "descr": "|u1"}
            np.lib.format.write_array_header_1_0(file, header)
            for image in ready.images:
                file.write(image.tobytes())
            file.flush()
            os.fsync(file.fileno())  # before the folder is renamed: a crash must not leave an entry without its content
            about = {
                "key": self.path.name,
                "shape": shape,
                "sizes": list(ready.sizes),
                "labels": None if ready.labels is None else ready.labels.flatten().tolist(),
                "how_split": ready.how_split,
                "left_out": list(ready.left_out),
            }
            digest = _digest(about, file.fileno())
        with (folder / _ABOUT).open("w", encoding="utf-8") as text:
            json.dump({**about, "digest": digest}, text)
            text.flush()
            os.fsync(text.fileno())


def _digest(about: dict[str, Any], file: int) -> str:
    """Return a digest of an entry. Blocks of the images are hashed in parallel."""

    def of_block(start: int) -> bytes:
        return hashlib.blake2b(os.pread(file, _BLOCK, start)).digest()

    digest = hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=20)
    for block_digest in in_order(of_block, range(0, os.fstat(file).st_size, _BLOCK)):
        digest.update(block_digest)
    return digest.hexdigest()
