r"""A folder of image files as a data set: decoded and checked one by one, in memory or once into a cache.

Sub-folders are classes: FOLDER/cat/1.png. Folders train, test and, if there is one, valid above these are splits;
without them images are split by their content. Within a split they stand in an order that their content decides.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pyro_vae.data.formats.arranging import SPLITS, Arranged, arrange, make_images
from pyro_vae.data.formats.cache import Entry, Kept, make_key
from pyro_vae.data.formats.decoding import InFile, Options, Store, decode
from pyro_vae.data.formats.image_files import version
from pyro_vae.data.images import Images
from pyro_vae.data.splits import OWN_SPLITS, Shares
from pyro_vae.errors import DataError

_LOG = logging.getLogger("pyro_vae")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".tif", ".tiff", ".bmp")


def from_folder(
    path: Path | str,
    *,
    size: int | None = None,
    channels: int | None = None,
    skip_bad: bool = False,
    splits: Shares = OWN_SPLITS,
    cache: Path | str | None = None,
    write_cache: bool = True,
) -> Images:
    """Read a folder of image files, and all folders in it.

    Args:
        path: the folder. PNG, JPEG, WebP, GIF, TIFF and BMP are read; other files are left out.
        size: height and width; images are cropped to the square in their center and resized, antialiased. None: all
            images have one size.
        channels: 1 for gray images (N, height, width), 3 for colors (N, 3, height, width). None: 1 if all files are
            gray, otherwise 3.
        skip_bad: whether files that cannot be used are left out, with a warning for each.
        splits: shares of training, validation and test images, where no folders say so; see `from_arrays`.
        cache: a folder where decoded images are kept. A second call with the same files and arguments decodes nothing,
            and the images are mapped into memory from there, so that they may be larger than it. While they are decoded
            they are on disk twice. None: all images are decoded into memory.
        write_cache: whether images that are not in the cache are added to it; otherwise nothing is written.

    Raises:
        DataError: no folder, no images, or a file that is damaged, animated, transparent, of another size than the
            first or of a type that is no image of 8 or 16 bits; names the file; or a class without images.
    """
    source = _source(Path(path), Options(size, channels, skip_bad), splits)
    kept = None
    if cache is not None and (write_cache or os.path.isdir(cache)):
        entry = Entry(Path(cache), source.key())
        kept = entry.read()
        if kept is not None:
            for name, why in kept.left_out:
                _LOG.warning("Left out: %s%s", source.folder / name, why)
        elif write_cache:
            kept = _keep(source, entry)
    if kept is not None:
        return make_images(source.folder.name, kept.parts, kept.labels, kept.how_split)
    decoded: list[np.ndarray] = []
    arranged, _ = _arrange(source, decoded)
    return make_images(source.folder.name, arranged.stacked(decoded), arranged.codes, arranged.how_split)


class _Source(NamedTuple):
    """A folder, its image files and how they are decoded."""

    folder: Path
    files: list[Path]
    options: Options
    splits: Shares

    def key(self) -> str:
        """Return the name of the entry of its images."""
        splits = [float(share) for share in self.splits]
        return make_key(self.folder, self.files, [version(), *self.options, splits])


def _source(folder: Path, options: Options, splits: Shares) -> _Source:
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder of images.")
    options.check()
    files = sorted(_files(folder))
    if not files:
        raise DataError(f"{folder} holds no images ({', '.join(_SUFFIXES)}).")
    _check_classes(folder, files, options.skip_bad)
    return _Source(folder, files, options, splits)


def _check_classes(folder: Path, files: list[Path], skip_bad: bool) -> None:
    """Refuse a class without images, or, of bad data that are skipped, warn of it."""
    parts = [path.relative_to(folder).parts[:-1] for path in files]
    depth = int(_are_split(parts))
    if not all(len(part) > depth for part in parts):
        return  # sub-folders are no classes
    above = sorted({part[:depth] for part in parts})
    there = {part[: depth + 1] for part in parts}
    for start in above:
        for each in sorted(folder.joinpath(*start).iterdir()):
            seen = each.is_symlink() or (*start, each.name) in there  # a link may lead back to a folder above
            if each.is_dir() and not each.name.startswith(".") and not seen:
                message = f"{each} is a class without images; remove the folder, or put some there."
                if not skip_bad:
                    raise DataError(message)
                _LOG.warning("Left out: %s", message)


def _are_split(parts: Sequence[tuple[str, ...]]) -> bool:
    """Whether the folders that images are in say of which split they are."""
    return all(part and part[0] in SPLITS for part in parts) and {"train", "test"} <= {part[0] for part in parts}


def _files(folder: Path) -> Iterator[Path]:
    """Yield the image files of a folder, of each directory once: a link may lead back to one above it."""
    seen: set[tuple[int, int]] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        for name in names:
            if name.lower().endswith(_SUFFIXES) and not name.startswith("."):
                yield Path(root) / name


def _arrange(source: _Source, store: Store) -> tuple[Arranged, list[tuple[Path, str]]]:
    """Decode the files of a folder into an empty store; return the order of the images, and what is left out and why.

    All images of a folder with train and test are in these or in valid; folders below are classes.
    """
    size, channels, skip_bad = source.options
    found = decode(source.files, size, skip_bad, store)
    parts = [source.files[index].relative_to(source.folder).parts[:-1] for index in found.kept]
    by_split = _are_split(parts)
    classes = [part[by_split:] for part in parts]
    arranged = arrange(
        store,
        channels or (3 if found.colored else 1),
        [part[0] for part in parts] if by_split else None,
        ["/".join(each) for each in classes] if all(classes) else None,
        number=len(parts),
        shares=source.splits,
        name=source.folder.name,
    )
    return arranged, [(source.files[index], why) for index, why in found.left_out]


def _keep(source: _Source, entry: Entry) -> Kept | None:
    """Decode the files of a folder into a new entry and return it; None where it cannot be written."""
    try:
        with entry.writing() as folder:
            with (folder / "decoded").open("w+b") as file:
                store = InFile(file)
                arranged, bad = _arrange(source, store)
                images = arranged.images(store, torch.cat(arranged.places))
                left_out = [
                    (path.relative_to(source.folder).as_posix(), why.removeprefix(str(path))) for path, why in bad
                ]
                shape = (sum(arranged.sizes), *arranged.shape)
                entry.write(folder, images, shape, arranged.sizes, arranged.codes, arranged.how_split, left_out)
            (folder / "decoded").unlink()
            if source.key() != entry.path.name:
                raise OSError("files have changed while they were decoded")
        return entry.read()
    except OSError as error:
        _LOG.warning("The cache is not written (%s); images are decoded into memory.", " ".join(str(error).split()))
        return None
