r"""Decoded images, kept on disk: an entry for each data set and way to decode it, known by their content.

An entry is a folder that is written under another name and renamed once it is whole. It holds images.npy, the images of
all splits one after the other, which is mapped into memory, and entry.json, all else and a digest of both.
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
_FORMAT = 2  # raised when the same files come to other entries
_IMAGES, _ABOUT, _UNFINISHED = "images.npy", "entry.json", ".unfinished-"
_ABANDONED = 24 * 3600  # seconds without a change, after which nobody is writing an entry any more
_BLOCK = 2**20
# What reading anybody's JSON and numbers may raise.
_DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError)


def make_key(folder: Path, files: Sequence[Path], options: Sequence[Any], shares: Shares) -> str:
    """Return a digest of the names and bytes of files, whatever the folder and its times.

    Args:
        folder: that they are in, or the one file.
        files: of it.
        options: all else that the images depend on, as JSON has it, but for
        shares: of the splits.
    """
    dependent = [_FORMAT, *options, [float(share) for share in shares]]
    digest = hashlib.blake2b(json.dumps(dependent).encode(), digest_size=20)
    found = tqdm(in_order(_content, files), "files", len(files), False, disable=None)
    for path, content in zip(files, found, strict=True):
        digest.update(json.dumps([path.relative_to(folder).as_posix(), content]).encode())
    return digest.hexdigest()


def _content(path: Path) -> str:
    try:
        if path.is_file():  # a pipe would be waited for
            with path.open("rb") as file:
                return hashlib.file_digest(file, "blake2b").hexdigest()
    except OSError:
        return "cannot be read"
    return "no file"


class Ready(NamedTuple):
    """What an entry is made of."""

    images: Iterable[np.ndarray]
    """Pixels of one split after the other, uint8: an image, or some, at a time."""
    shape: tuple[int, ...]
    """Of an image."""
    sizes: Sequence[int]
    """Numbers of training, validation and test images."""
    labels: Tensor | None
    """As in `Kept`."""
    how_split: str
    """Likewise."""
    left_out: Sequence[tuple[str, str]] = ()
    """Likewise."""


class Kept(NamedTuple):
    """What an entry holds."""

    parts: tuple[Tensor, ...]
    """Training, validation and test images, uint8 (N, *pixels) each, mapped."""
    labels: Tensor | None
    """Of all images, one split after the other, (N, 1)."""
    how_split: str
    """See `Collection`."""
    left_out: list[tuple[str, str]]
    """Where in the data there are images that cannot be used, relative to their path, and why."""


class Entry:
    """An entry of a cache, whether it is there or not.

    Args:
        cache: the folder of all entries.
        key: its name there; see `make_key`.
    """

    def __init__(self, cache: Path, key: str) -> None:
        self.cache = cache
        self.path = cache / key

    def read(self) -> Kept | None:
        """Return what it holds, or None where it is absent, or damaged, which the log says."""
        if not os.path.isdir(self.path):
            return None
        try:
            return self._read()
        except _DAMAGE as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            _LOG.warning("%s is damaged, and its images are decoded anew (%s)", self.path, reason)
            return None

    def _read(self) -> Kept:
        path = self.path / _IMAGES
        if not (path.is_file() and (self.path / _ABOUT).is_file()):
            raise DataError("it is not whole")
        about = json.loads((self.path / _ABOUT).read_text("utf-8"))
        digest = about.pop("digest")
        shape, sizes, labels = tuple(about["shape"]), list(about["sizes"]), about["labels"]
        with path.open("rb") as file:
            header = npy.read_header(file, _IMAGES)
            if about["key"] != self.path.name or header != npy.Header(shape, False, np.dtype(np.uint8)):
                raise DataError("it is of other images")
            pixels = torch.from_numpy(npy.map_content(file, header, _IMAGES))
            if digest != _digest(about, file.fileno()):
                raise DataError("its digest is another")
        if len(sizes) != 3 or min(sizes) < 1 or sum(sizes) != len(pixels):
            raise DataError(f"{sizes} of {len(pixels)} images")
        codes = None if labels is None else torch.tensor(labels, dtype=torch.long).view(len(pixels), 1)
        left_out = [(str(name), str(why)) for name, why in about["left_out"]]
        return Kept(pixels.split(sizes), codes, str(about["how_split"]), left_out)

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """Yield a new folder, which becomes the entry in one instant; an exception leaves nothing of it.

        Where another process has been faster, its entry stays.

        Raises:
            OSError: it cannot be written.
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
        """Put a new entry in the place of a damaged one."""
        try:
            self._read()
        except _DAMAGE:
            shutil.rmtree(self.path)
            temporary.rename(self.path)

    def _remove_abandoned(self) -> None:
        """Remove what a kill has left of entries being written."""
        for folder in self.cache.glob(f"{_UNFINISHED}*"):
            with suppress(OSError):  # of another process, which has just renamed or removed it
                changed = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
                if time.time() - changed > _ABANDONED:
                    shutil.rmtree(folder)

    def write(self, folder: Path, ready: Ready) -> None:
        """Write the files of an entry.

        Args:
            folder: that `writing` has yielded.
            ready: what the entry is to hold.

        Raises:
            OSError: they cannot be written.
        """
        shape = (sum(ready.sizes), *ready.shape)
        with (folder / _IMAGES).open("w+b") as file:
            header = {"shape": shape, "fortran_order": False, "descr": "|u1"}
            np.lib.format.write_array_header_1_0(file, header)
            for image in ready.images:
                file.write(image.tobytes())
            file.flush()
            os.fsync(file.fileno())  # before the new name, lest that outlive the bytes
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
    """Return a digest of an entry, whose images are read in parallel."""

    def of_block(start: int) -> bytes:
        return hashlib.blake2b(os.pread(file, _BLOCK, start)).digest()

    digest = hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=20)
    for each in in_order(of_block, range(0, os.fstat(file).st_size, _BLOCK)):
        digest.update(each)
    return digest.hexdigest()
