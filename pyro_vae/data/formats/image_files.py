r"""Checking and decoding of one image file, on disk or in a table. Its format is recognized by its content."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pyro_vae.errors import DataError

_LARGEST = 100_000_000  # pixels per file; larger images are not training images, and may be decompression bombs

# The decoders of other formats may run programs, e.g. Ghostscript for EPS.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")


class Encoded(NamedTuple):
    """An image file stored in a table."""

    table: str
    """Name of the table in error messages."""
    name: str
    """Position in the table, e.g. "row 17 of image", in error messages."""
    content: Any
    """Content of the file, an object with the buffer protocol, or None if it is missing."""
    has_path: bool = False
    """Whether the table gives the path of a file. It is never opened, since an untrusted table may name any file."""

    def __str__(self) -> str:
        return f"{self.table}: {self.name}"


Source = Path | Encoded


def square(image: Any, size: int, side: int | None = None, resample: str = "BICUBIC") -> Any:
    """Crop a centered square from an image, and resize it with antialiasing.

    Args:
        image: A `PIL.Image.Image`.
        size: Height and width of the result.
        side: Side of the cropped square in pixels. If None, the largest possible.
        resample: Name of a filter in `PIL.Image.Resampling`.
    """
    if side is None and image.size == (size, size):
        return image
    from PIL import Image  # lazily, since the import is slow

    side = side or min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    # Crop first: resizing with a box would blend in pixels outside the square.
    return image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling[resample])


def read_image(source: Source, change: Callable[[Any, Source], Any]) -> np.ndarray:
    """Read an image file, and return its pixels, uint8 (height, width), or (height, width, 3) if in color.

    Images are reduced to 8 bits and rotated upright, and must not be transparent.

    Args:
        source: Path of the file, or an `Encoded` file. Error messages refer to it as str(source).
        change: Transformation, called with the upright `PIL.Image.Image` in mode L or RGB, and the source. It returns
            the image to be converted to pixels.

    Raises:
        DataError: If the file is damaged, animated, transparent or not an image with 8 or 16 bits. The message names
            the file.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    content = _content(source)
    try:
        with Image.open(content, formats=_FORMATS) as image:
            if image.width * image.height > _LARGEST:
                raise DataError(f"{source} has {image.width} x {image.height} pixels; make it smaller.")
            if getattr(image, "n_frames", 1) > 1:
                raise DataError(f"{source} is animated; give its frames as files.")
            image.load()
            wide = _is_wide(image)
            return np.asarray(change(_plain(ImageOps.exif_transpose(image), source, wide), source))
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"{source} cannot be read as an image (unknown format); repair or remove it.") from error
    except Exception as error:  # decoders may raise almost anything for untrusted files
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{source} cannot be read as an image ({reason}); repair or remove it.") from error


def to_pixels(image: Any, name: str) -> np.ndarray | None:
    """Return the pixels of a `PIL.Image.Image` as `read_image` does, or None if its type is not supported.

    Raises:
        DataError: If the image is transparent or does not have 8 or 16 bits. The message contains `name`.
    """
    from PIL import Image

    return np.asarray(_plain(image, name, _is_wide(image))) if isinstance(image, Image.Image) else None


def _content(source: Source) -> Path | io.BytesIO:
    if isinstance(source, Path):
        if not source.is_file():
            raise DataError(f"{source} is not a file; remove it.")
        return source
    if source.content is not None:
        return io.BytesIO(source.content)
    if source.has_path:
        raise DataError(f"{source} holds a path, which is never opened, but no bytes; store the images themselves.")
    raise DataError(f"{source} is null; leave out such rows.")


def _is_wide(image: Any) -> bool:
    """Return whether an image has 16 bits per pixel."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")


def _plain(image: Any, source: Source | str, wide: bool) -> Any:
    """Convert an image to mode L or RGB. Transposing loses the format, so `wide` is determined before."""
    if image.mode in ("PA", "LA", "RGBA", "RGBa", "La") or "transparency" in image.info:
        alpha = image.convert("RGBA").getchannel("A")
        if alpha.getextrema() != (255, 255):
            raise DataError(f"{source} has transparent pixels; put it on a background.")
        return image.convert("L" if image.mode in ("LA", "La") else "RGB")
    if wide:
        from PIL import Image

        levels = np.asarray(image).astype(np.float64) / 257  # maps 65,535 to 255
        return Image.fromarray(levels.round().astype(np.uint8))
    if image.mode in ("1", "L"):
        return image.convert("L")
    if image.mode in ("P", "RGB", "CMYK", "YCbCr", "HSV", "LAB"):
        return image.convert("RGB")
    raise DataError(f"{source} has pixels of type {image.mode}; give 8 or 16 bits.")


def version() -> str:
    """Return the version of the decoder. It is part of the cache key, since versions may decode differently."""
    import PIL

    return PIL.__version__
