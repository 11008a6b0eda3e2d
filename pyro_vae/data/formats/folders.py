r"""A folder of image files as a data set. Files are decoded and checked in parallel, into memory or into the cache.

Subfolders are classes: FOLDER/cat/1.png. If the folders at the top are train, test and optionally valid, they are the
splits; otherwise, images are split by their content. The order within a split is determined by the content as well.
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
    """Read all image files of a folder and its subfolders.

    Args:
        path: Path of the folder. PNG, JPEG, WebP, GIF, TIFF and BMP files are read; others are ignored.
        size: Height and width of the images. They are cropped to the largest centered square and resized with
            antialiasing. If None, they are left unchanged and must all have the same size.
        channels: 1 for gray images (N, height, width), 3 for color images (N, 3, height, width). If None, it is 1 if
            all files are gray, and 3 otherwise.
        skip_bad: Skip files that cannot be used, with a warning for each, instead of raising.
        splits: Fractions of training, validation and test images, if the folders do not define the splits; see
            `from_arrays`.
        cache: Folder of the cache of decoded images. A second call with the same files and arguments decodes nothing:
            it memory-maps the images from the cache, so that they may be larger than memory. During decoding they are
            on disk twice. If None, images are decoded into memory.
        write_cache: Add images to the cache if they are not in it. If False, nothing is written.

    Raises:
        DataError: If there is no such folder, there are no images, a class has no images, or a file is damaged,
            animated, transparent, of another size than the first, or not an image with 8 or 16 bits. The message names
            the file.
    """
    folder, options = Path(path), Options(size, channels, skip_bad)
    files = _usable(folder, options)
    source = ImageFiles(folder, files, options, splits, partial(_known, folder, files))
    key = partial(make_key, folder, files, [version(), *options], splits)
    kept = Cache(cache, write_cache).images(folder, key, lambda _, file: source.ready(file))
    return source.in_memory() if kept is None else kept


def _usable(folder: Path, options: Options) -> list[Path]:
    """Return the image files of a folder, sorted. Raise for all problems that are visible before decoding."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder of images.")
    options.check()
    files = sorted(_files(folder))
    if not files:
        raise DataError(f"{folder} holds no images ({', '.join(_SUFFIXES)}).")
    _check_classes(folder, files, options.skip_bad)
    return files


def _known(folder: Path, files: list[Path], kept: list[int]) -> tuple[list[str] | None, list[str] | None]:
    """Return the splits and the classes of the kept files, as `ImageFiles.known`.

    If the folder contains train and test, all of its images are in these or in valid, and the folders below are
    classes.
    """
    parts = [files[index].relative_to(folder).parts[:-1] for index in kept]
    by_split = _are_split(parts)
    classes = [part[by_split:] for part in parts]
    return (
        [part[0] for part in parts] if by_split else None,
        ["/".join(names) for names in classes] if all(classes) else None,
    )


def _check_classes(folder: Path, files: list[Path], skip_bad: bool) -> None:
    """Raise if a class has no images, or warn of it if `skip_bad`."""
    parts = [path.relative_to(folder).parts[:-1] for path in files]
    depth = int(_are_split(parts))
    if not all(len(part) > depth for part in parts):
        return  # subfolders are not classes
    parents = sorted({part[:depth] for part in parts})
    nonempty = {part[: depth + 1] for part in parts}
    for parent in parents:
        for entry in sorted(folder.joinpath(*parent).iterdir()):
            # The target of a link may have been visited under another name, so that links are not reported.
            accounted_for = entry.is_symlink() or (*parent, entry.name) in nonempty
            if entry.is_dir() and not entry.name.startswith(".") and not accounted_for:
                message = f"{entry} is a class without images; remove the folder, or put some there."
                if not skip_bad:
                    raise DataError(message)
                _LOG.warning("Left out: %s", message)


def _are_split(parts: Sequence[tuple[str, ...]]) -> bool:
    """Return whether the top-level folders of the images are splits: train, test and optionally valid."""
    return all(part and part[0] in SPLITS for part in parts) and {"train", "test"} <= {part[0] for part in parts}


def _files(folder: Path) -> Iterator[Path]:
    """Yield the image files of a folder. Each directory is visited once, since links may form cycles."""
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
