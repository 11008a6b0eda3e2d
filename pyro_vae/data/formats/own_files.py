r"""Your own data on disk. The format is recognized by the content of a file, not by its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pyro_vae.data.collection import Collection
from pyro_vae.data.formats import array_files, arrow, arrow_tables, hugging_face, tables
from pyro_vae.data.formats.decoding import Options
from pyro_vae.data.formats.folders import from_folder
from pyro_vae.data.formats.keeping import Cache
from pyro_vae.data.splits import OWN_SPLITS, Shares
from pyro_vae.errors import DataError

_ARRAYS = (b"\x93NUM", b"PK\x03\x04")


def from_path(
    path: Path | str,
    *,
    size: int | None = None,
    channels: int | None = None,
    skip_bad: bool = False,
    splits: Shares = OWN_SPLITS,
    cache: Path | str | None = None,
    write_cache: bool = True,
) -> Collection:
    """Read a file, a folder of images, or a folder written by Hugging Face's `save_to_disk`.

    Args:
        path: Path of the data.
        size: Height and width of images; see `from_folder`.
        channels: Number of channels of images; see `from_folder`.
        skip_bad: Skip image files that cannot be used; see `from_folder`.
        splits: Fractions of training, validation and test data, if the data are not split already; see `from_arrays`.
        cache: Folder of the cache of decoded images; see `from_folder`.
        write_cache: Add images to the cache if they are not in it; see `from_folder`.

    Raises:
        DataError: If the data cannot be read (see `from_folder`, `from_file` and `hugging_face.from_saved`), or an
            option for images does not apply.
    """
    path = Path(path)
    if hugging_face.is_saved(path):
        return hugging_face.from_saved(path, Options(size, channels, skip_bad), splits, Cache(cache, write_cache))
    read: Callable[..., Collection] = from_folder if path.is_dir() else from_file
    options = {"size": size, "channels": channels, "skip_bad": skip_bad, "splits": splits}
    return read(path, **options, cache=cache, write_cache=write_cache)


def from_file(
    path: Path | str,
    *,
    size: int | None = None,
    channels: int | None = None,
    skip_bad: bool = False,
    splits: Shares = OWN_SPLITS,
    cache: Path | str | None = None,
    write_cache: bool = True,
) -> Collection:
    """Read a file of images or numbers.

    Args:
        path: Path of a .npy or .npz file of arrays, a table in CSV or Parquet format, or an .h5ad file of counts.
        size: Height and width of image files in Parquet; see `from_folder`. It does not apply to other formats.
        channels: Number of channels of image files in Parquet.
        skip_bad: Skip image files in Parquet that cannot be used.
        splits: Fractions of training, validation and test data; see `from_arrays`.
        cache: Folder of the cache of decoded images; see `from_folder`. Tables of numbers are not cached.
        write_cache: Add images to the cache if they are not in it; see `from_folder`.

    Raises:
        DataError: If the file cannot be read, its format is unknown, or an option does not apply to it; or see
            `array_files.from_array_file`, `tables.from_csv`, `arrow_tables.from_parts` and `tables.from_h5ad`.
    """
    path, options, kept = Path(path), Options(size, channels, skip_bad), Cache(cache, write_cache)
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is neither a file nor a folder; give a path of data.")
    try:
        with path.open("rb") as file:
            start = file.read(4096)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error
    if start[:4] == b"PAR1":
        return arrow_tables.from_parts({"train": arrow.open_parquet(path)}, path, options, splits, kept)
    options.refuse(path)
    if start[:4] in _ARRAYS:
        return array_files.from_array_file(path, splits=splits, cache=kept)
    if start[:4] == b"\x89HDF":
        return tables.from_h5ad(path, splits=splits)
    if not start or b"\0" in start:
        what = "is empty" if not start else "has an unknown format"
        raise DataError(f"{path} {what}; give a .npy, .npz, .csv, .parquet or .h5ad file, or a folder of images.")
    return tables.from_csv(path, splits=splits)
