r"""A folder of image files as a data set: decoded and checked one by one, in memory or once into a cache.

Sub-folders are classes: FOLDER/cat/1.png. Folders train, test and, if there is one, valid above these are splits;
without them images are split by their content. Within a split they stand in an order that their content decides.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from pyro_vae.data.formats.arranging import SPLITS
from pyro_vae.data.formats.cache import make_key
from pyro_vae.data.formats.decoding import Options
from pyro_vae.data.formats.image_files import version
from pyro_vae.data.formats.keeping import Cache, ImageFiles
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
    folder, options = Path(path), Options(size, channels, skip_bad)
    files = _usable(folder, options)
    source = ImageFiles(folder, files, options, splits, partial(_known, folder, files))
    key = partial(make_key, folder, files, [version(), *options], splits)
    kept = Cache(cache, write_cache).images(folder, key, lambda _, file: source.ready(file))
    return source.in_memory() if kept is None else kept


def _usable(folder: Path, options: Options) -> list[Path]:
    """Return the image files of a folder, sorted, or refuse what can be refused before they are read."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder of images.")
    options.check()
    files = sorted(_files(folder))
    if not files:
        raise DataError(f"{folder} holds no images ({', '.join(_SUFFIXES)}).")
    _check_classes(folder, files, options.skip_bad)
    return files


def _known(folder: Path, files: list[Path], kept: list[int]) -> tuple[list[str] | None, list[str] | None]:
    """Return the splits and the classes of the files that are kept, as of `ImageFiles`.

    All images of a folder with train and test are in these or in valid; folders below are classes.
    """
    parts = [files[index].relative_to(folder).parts[:-1] for index in kept]
    by_split = _are_split(parts)
    classes = [part[by_split:] for part in parts]
    return (
        [part[0] for part in parts] if by_split else None,
        ["/".join(each) for each in classes] if all(classes) else None,
    )


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
