r"""One image file, on disk or in a table: recognized by what it holds, checked and decoded."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pyro_vae.errors import DataError

_LARGEST = 100_000_000  # pixels of a file: more is no training image, and may be made to exhaust the memory

# Others may have their decoder run programs: EPS is drawn by Ghostscript.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")


class Encoded(NamedTuple):
    """An image file that a table holds."""

    table: str
    """What an error calls the table."""
    name: str
    """And the place in it: "row 17 of image"."""
    content: Any
    """Its bytes, or an object with the buffer protocol; None where there are none."""
    has_path: bool = False
    """Whether the table names a file. It is not opened: anybody's table may name any file."""

    def __str__(self) -> str:
        return f"{self.table}: {self.name}"


Source = Path | Encoded


def square(image: Any, size: int, side: int | None = None, resample: str = "BICUBIC") -> Any:
    """Crop an image to a square in its center and resize it, antialiased.

    Args:
        image: a `PIL.Image.Image`.
        size: height and width of what is returned.
        side: of the square, in pixels. None: as large as it can be.
        resample: name of a filter of `PIL.Image.Resampling`.
    """
    if side is None and image.size == (size, size):
        return image
    from PIL import Image  # on use, as it takes long to import

    side = side or min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    # Cropped first: a resize of a part would mix in what lies beside it.
    return image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling[resample])


def read_image(source: Source, change: Callable[[Any, Source], Any]) -> np.ndarray:
    """Read one file: 8 bits, upright, without transparency; uint8 (height, width), or (height, width, 3) of colors.

    Args:
        source: path of the file, or what a table holds of it; errors call it str(source).
        change: called with the image, a `PIL.Image.Image` that is upright and of mode L or RGB, and its source;
            returns the image whose pixels are wanted.

    Raises:
        DataError: it is damaged, animated, transparent or of a type that is no image of 8 or 16 bits; names the file.
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
        raise DataError(f"{source} cannot be read as an image (of no known format); repair or remove it.") from error
    except Exception as error:  # what a decoder may raise on anybody's file has no end
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{source} cannot be read as an image ({reason}); repair or remove it.") from error


def to_pixels(image: Any, name: str) -> np.ndarray | None:
    """Return the pixels of a `PIL.Image.Image` in memory as `read_image` does; None where it is no such image.

    Raises:
        DataError: it is transparent or of a type that is no image of 8 or 16 bits; names it.
    """
    from PIL import Image

    return np.asarray(_plain(image, name, _is_wide(image))) if isinstance(image, Image.Image) else None


def _content(source: Source) -> Path | io.BytesIO:
    if isinstance(source, Path):
        if not source.is_file():
            raise DataError(f"{source} is no file; remove it.")
        return source
    if source.content is not None:
        return io.BytesIO(source.content)
    if source.has_path:
        raise DataError(f"{source} names a file, which is not opened, and holds no bytes; store the images themselves.")
    raise DataError(f"{source} is null; leave out such rows.")


def _is_wide(image: Any) -> bool:
    """Whether the levels of an image have 16 bits."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")


def _plain(image: Any, source: Source | str, wide: bool) -> Any:
    """Return an image of mode L or RGB; `wide` is as of `_is_wide`, which a transposed image no longer tells."""
    if image.mode in ("PA", "LA", "RGBA", "RGBa", "La") or "transparency" in image.info:
        alpha = image.convert("RGBA").getchannel("A")
        if alpha.getextrema() != (255, 255):
            raise DataError(f"{source} has transparent pixels; put it on a background.")
        return image.convert("L" if image.mode in ("LA", "La") else "RGB")
    if wide:
        from PIL import Image

        levels = np.asarray(image).astype(np.float64) / 257  # 65,535 is 255
        return Image.fromarray(levels.round().astype(np.uint8))
    if image.mode in ("1", "L"):
        return image.convert("L")
    if image.mode in ("P", "RGB", "CMYK", "YCbCr", "HSV", "LAB"):
        return image.convert("RGB")
    raise DataError(f"{source} has pixels of type {image.mode}; give 8 or 16 bits.")


def version() -> str:
    """Return the version of the decoder, since another may give other pixels."""
    import PIL

    return PIL.__version__
