r"""Parallel decoding of image files, a bounded number at a time, into memory or into a file."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import IO, Any, NamedTuple, Protocol, TypeVar

import numpy as np
from tqdm import tqdm

from pyro_vae.data.formats.image_files import Source, read_image, square
from pyro_vae.errors import DataError

_LOG = logging.getLogger("pyro_vae")
_WORKERS = min(32, (os.cpu_count() or 1) + 4)
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Options(NamedTuple):
    """Options that bring your own image files to one size and number of channels; see `from_folder`."""

    size: int | None = None
    channels: int | None = None
    skip_bad: bool = False

    def check(self) -> None:
        """Raise a DataError if an option is invalid."""
        if self.channels not in (None, 1, 3):
            raise DataError(f"channels is {self.channels}; choose 1 or 3.")

    def refuse(self, name: object) -> None:
        """Raise a DataError if any option is set, for data that are not image files."""
        if self != Options():
            raise DataError(f"{name} is read unchanged: leave out --image-size, --channels and --skip-bad.")


class Store(Protocol):
    """Storage of decoded images, uint8 (height, width) or (height, width, 3) each: a list, or `InFile`."""

    def append(self, image: np.ndarray, /) -> None:
        """Append an image."""

    def __getitem__(self, index: int, /) -> np.ndarray:
        """Return the image with this index."""


class InFile:
    """A `Store` in a file on disk. All images must have the same height and width.

    Args:
        file: An empty file, open for reading and writing.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._shape: tuple[int, ...] = ()
        self._channels = bytearray()

    def append(self, image: np.ndarray) -> None:
        """Append an image. It may be gray or in color."""
        self._shape = image.shape[:2]
        self._channels.append(image.size // (self._shape[0] * self._shape[1]))
        self._file.write(image.tobytes())

    def __getitem__(self, index: int) -> np.ndarray:
        """Return the image with this index. No images may be appended afterwards."""
        start, end = self._ends[index : index + 2].tolist()
        image = np.frombuffer(os.pread(self._file.fileno(), end - start, start), np.uint8)
        return image.reshape(*self._shape, *([3] if self._channels[index] == 3 else []))

    @cached_property
    def _ends(self) -> np.ndarray:
        self._file.flush()
        channels = np.frombuffer(b"\0" + self._channels, np.uint8)
        return channels.cumsum(dtype=np.int64) * (self._shape[0] * self._shape[1])


class Decoded(NamedTuple):
    """Result of decoding image files."""

    kept: list[int]
    """Indices of the decoded files, in the order of the images in the store."""
    left_out: list[tuple[int, str]]
    """Indices of the files that cannot be used, and the reasons."""
    colored: bool
    """Whether any image is in color."""


def decode(files: Sequence[Source], size: int | None, skip_bad: bool, store: Store) -> Decoded:
    """Decode files in parallel, and append the images to a store in the order of the files.

    Args:
        files: The image files.
        size: Height and width to which images are cropped and resized. If None, all images must have the size of the
            first.
        skip_bad: Skip files that cannot be used, with a warning for each, instead of raising.
        store: An empty store.

    Raises:
        DataError: If a file cannot be used, an image differs in size from the first, or there are no images.
    """
    good: list[int] = []
    left_out: list[tuple[int, str]] = []
    shape, colored = None, False

    def resized(image: Any, source: Source) -> Any:
        return image if size is None else square(image, size)

    for index, pixels in read_all(files, resized, left_out if skip_bad else None):
        shape = shape or pixels.shape[:2]
        if pixels.shape[:2] != shape:
            sizes = [" x ".join(map(str, size_of)) for size_of in (pixels.shape[:2], shape)]
            first = files[good[0]].name
            raise DataError(f"{files[index]} is {sizes[0]} pixels and {first} {sizes[1]}; give a size for all.")
        store.append(pixels)
        good.append(index)
        colored |= pixels.ndim == 3
    if not good:
        raise DataError(f"None of the {len(files)} image files can be used; the first: {files[0]}.")
    return Decoded(good, left_out, colored)


def read_all(
    files: Sequence[Source], change: Callable[[Any, Source], Any], left_out: list[tuple[int, str]] | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Read files in parallel, with a progress bar, and yield the index and the pixels of each, in order.

    Args:
        files: The image files.
        change: Transformation of each image; see `read_image`.
        left_out: List to which the index of each file that cannot be used, and the reason, are appended, with a
            warning. If None, the first such file raises.

    Raises:
        DataError: If a file cannot be used; see `read_image`.
    """

    def read(source: Source) -> np.ndarray | DataError:
        try:
            return read_image(source, change)
        except DataError as error:
            return error

    results = in_order(read, files)
    for index, pixels in enumerate(tqdm(results, "images", len(files), False, disable=None)):
        if not isinstance(pixels, DataError):
            yield index, pixels
        elif left_out is None:
            raise pixels
        else:
            _LOG.warning("Left out: %s", pixels)
            left_out.append((index, str(pixels)))


def in_order(
    function: Callable[[_Item], _Result], items: Iterable[_Item], ahead: int = 4 * _WORKERS
) -> Iterator[_Result]:
    """Yield function(item) for each item, in order, computed in parallel threads.

    Args:
        function: Function to call, in several threads.
        items: Arguments of the calls.
        ahead: Maximum number of results that are computed before they are consumed. `Executor.map` has no such limit,
            and would hold all results in memory.
    """
    waiting: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(_WORKERS) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) == ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def as_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Return an image as (height, width) for 1 channel, or as (3, height, width) for 3 channels."""
    if channels == 3:
        return np.broadcast_to(image, (3, *image.shape)) if image.ndim == 2 else np.moveaxis(image, -1, 0)
    return image if image.ndim == 2 else _luma(image)


def _luma(colors: np.ndarray) -> np.ndarray:
    """Return the luma of RGB pixels (height, width, 3), by ITU-R BT.601."""
    return (colors @ np.array([0.299, 0.587, 0.114])).round().astype(np.uint8)
