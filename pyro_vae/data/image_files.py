r"""One image file: recognized by what it holds, checked and decoded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pyro_vae.errors import DataError

_LARGEST = 100_000_000  # pixels of a file: more is no training image, and may be made to exhaust the memory


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


def read_image(path: Path, change: Callable[[Any, Path], Any]) -> np.ndarray:
    """Read one file: 8 bits, upright, without transparency; uint8 (height, width), or (height, width, 3) of colors.

    Args:
        path: of the file.
        change: called with the image, a `PIL.Image.Image` that is upright and of mode L or RGB, and its file; returns
            the image whose pixels are wanted.

    Raises:
        DataError: it is damaged, animated, transparent or of a type that is no image of 8 or 16 bits; names the file.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not path.is_file():
        raise DataError(f"{path} is no file; remove it.")
    try:
        with Image.open(path) as image:
            if image.width * image.height > _LARGEST:
                raise DataError(f"{path} has {image.width} x {image.height} pixels; make it smaller.")
            if getattr(image, "n_frames", 1) > 1:
                raise DataError(f"{path} is animated; give its frames as files.")
            image.load()
            wide = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
            return np.asarray(change(_plain(ImageOps.exif_transpose(image), path, wide), path))
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"{path} cannot be read as an image (of no known format); repair or remove it.") from error
    except Exception as error:  # what a decoder may raise on anybody's file has no end
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{path} cannot be read as an image ({reason}); repair or remove it.") from error


def _plain(image: Any, path: Path, wide: bool) -> Any:
    """Return an image of mode L or RGB; `wide` says that its levels have 16 bits."""
    if image.mode in ("PA", "LA", "RGBA", "RGBa", "La") or "transparency" in image.info:
        alpha = image.convert("RGBA").getchannel("A")
        if alpha.getextrema() != (255, 255):
            raise DataError(f"{path} has transparent pixels; put it on a background.")
        return image.convert("L" if image.mode in ("LA", "La") else "RGB")
    if wide:
        from PIL import Image

        levels = np.asarray(image).astype(np.float64) / 257  # 65,535 is 255
        return Image.fromarray(levels.round().astype(np.uint8))
    if image.mode in ("1", "L"):
        return image.convert("L")
    if image.mode in ("P", "RGB", "CMYK", "YCbCr", "HSV", "LAB"):
        return image.convert("RGB")
    raise DataError(f"{path} has pixels of type {image.mode}; give 8 or 16 bits.")


def version() -> str:
    """Return the version of the decoder, since another may give other pixels."""
    import PIL

    return PIL.__version__
