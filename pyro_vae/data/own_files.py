r"""A file of a user's own as a data set, known by what it holds, whatever its name."""

from __future__ import annotations

from pathlib import Path

from pyro_vae.data import array_files, tables
from pyro_vae.data.collection import Collection
from pyro_vae.data.splits import OWN_SPLITS, Shares
from pyro_vae.errors import DataError

_READERS = {
    b"\x93NUM": array_files.from_array_file,
    b"PK\x03\x04": array_files.from_array_file,
    b"PAR1": tables.from_parquet,
    b"\x89HDF": tables.from_h5ad,
}


def from_file(path: Path | str, *, splits: Shares = OWN_SPLITS) -> Collection:
    """Read a file of images or numbers.

    Args:
        path: of a .npy or .npz file of arrays, a table in CSV or Parquet, or an .h5ad file of counts.
        splits: shares of training, validation and test data; see `from_arrays`.

    Raises:
        DataError: the file cannot be read or is of no known kind; or see `array_files.from_array_file`,
            `tables.from_csv`, `tables.from_parquet` and `tables.from_h5ad`.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is neither a file nor a folder; give a path of data.")
    try:
        with path.open("rb") as file:
            start = file.read(4096)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error
    if start[:4] in _READERS:
        return _READERS[start[:4]](path, splits=splits)
    if not start or b"\0" in start:
        what = "holds nothing" if not start else "is of no known kind"
        raise DataError(f"{path} {what}; give a .npy, .npz, .csv, .parquet or .h5ad file, or a folder of images.")
    return tables.from_csv(path, splits=splits)
