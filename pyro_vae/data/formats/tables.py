r"""Tables as data sets: CSV files and other tables of numbers, and the counts of .h5ad files.

The labels are in the column of strings, or, if there is none, in that named label, labels, class, target or y.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from pyro_vae.data.numbers import Numbers, column_names, from_numbers
from pyro_vae.data.splits import OWN_SPLITS, Shares
from pyro_vae.errors import DataError

if TYPE_CHECKING:
    import h5py
    import pandas as pd

LABELS = ("label", "labels", "class", "target", "y")
_SEPARATORS = ",\t;"
_CELL_TYPE = "cell_type"  # the usual name of cell labels


def from_csv(path: Path | str, *, splits: Shares = OWN_SPLITS) -> Numbers:
    """Read a text file of numbers separated by commas, tabs or semicolons, with or without a header.

    Args:
        path: Path of the file, in UTF-8.
        splits: Fractions of training, validation and test rows; see `from_arrays`.

    Raises:
        DataError: If the file is not such a table, or its numbers are invalid (see `from_numbers`).
    """
    import pandas as pd  # lazily, since the import is slow

    path = Path(path)
    with _readable(path) as file:
        first = [file.readline() for _ in range(2)]
    try:
        lines = [line.decode("utf-8-sig").strip("\r\n") for line in first]
        separator = max(_SEPARATORS, key=lines[0].count)
        header = 0 if _has_names(*(line.split(separator) for line in lines)) else None
        frame = pd.read_csv(path, sep=separator, header=header, skipinitialspace=True, encoding="utf-8-sig")
    except (ValueError, OSError) as error:  # includes errors of the parser and of UTF-8
        raise DataError(f"{path} cannot be read as a table ({_short(error)}); repair or replace it.") from error
    if header is None:
        frame.columns = [*column_names(len(frame.columns))]
    return from_frame(frame, path, splits)


def from_frame(
    frame: pd.DataFrame,
    path: Path,
    splits: Shares,
    *,
    valid: pd.DataFrame | None = None,
    test: pd.DataFrame | None = None,
) -> Numbers:
    """Return a data set from a frame whose columns are numbers, except for an optional column of labels.

    Args:
        frame: Training rows. Validation and test rows that are not given are split off from them.
        path: Path of the table, for its name and for error messages.
        splits: Fractions of training, validation and test rows; see `from_arrays`.
        valid: Validation rows. They require test rows.
        test: Test rows.

    Raises:
        DataError: If a column is neither numbers nor labels, there are several columns of labels, or the columns of the
            splits differ; or see `from_numbers`.
    """
    values, labels, columns = _numbers_and_labels(frame, path)
    held_out, tested = (_beside(split, path, columns) for split in (valid, test))
    return from_numbers(
        values,
        tested[0],
        labels=labels,
        test_labels=tested[1],
        valid=held_out[0],
        valid_labels=held_out[1],
        columns=columns,
        splits=splits,
        name=path.stem,
    )


def _beside(frame: pd.DataFrame | None, path: Path, columns: list[str]) -> tuple[np.ndarray | None, np.ndarray | None]:
    if frame is None:
        return None, None
    values, labels, names = _numbers_and_labels(frame, path)
    if names != columns:
        raise DataError(f"{path}: the splits differ in their columns; give all of them the same, in the same order.")
    return values, labels


def _numbers_and_labels(frame: pd.DataFrame, path: Path) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
    """Return the numbers (N, columns), the labels (N,) or None, and the names of the columns."""
    if nameless := [n for n, name in enumerate(frame.columns) if str(name).startswith("Unnamed:")]:
        raise DataError(f"{path}: column {nameless[0]} has no name (row numbers?); name it or leave it out.")
    words = [name for name in frame.columns if frame[name].dtype.kind not in "iufb"]
    named = words or [name for name in frame.columns if str(name).lower() in LABELS]
    if len(named) > 1:
        listed = ", ".join(map(str, named[:3]))
        raise DataError(f"{path}: {listed} are not numbers, but only one column may hold labels; leave out the others.")
    labels = None
    if named:
        column = frame[named[0]]
        if column.isna().any():
            row = int(np.flatnonzero(column.isna())[0])
            raise DataError(f"{path}: row {row} of {named[0]} has no label; leave out such rows or fill them.")
        # By NumPy: strings of pandas, which are stored as UTF-8, cannot hold half of a surrogate pair.
        labels = column.to_numpy() if column.dtype.kind in "iub" else column.to_numpy(object).astype(str)
        frame = frame.drop(columns=named)
    if not len(frame.columns):
        raise DataError(f"{path} has no column of numbers.")
    return frame.to_numpy(np.float64), labels, [*map(str, frame.columns)]


def from_h5ad(path: Path | str, *, splits: Shares = OWN_SPLITS) -> Numbers:
    """Read the layer "counts" of an AnnData file, or X if there is none, with the cell types in obs as labels.

    Args:
        path: Path of the file.
        splits: Fractions of training, validation and test rows; see `from_arrays`.

    Raises:
        DataError: If the file is damaged or not an AnnData file, or its numbers are invalid (see `from_numbers`).
    """
    import h5py  # lazily

    path = Path(path)
    try:
        with h5py.File(path, "r") as file:
            where = "layers/counts" if "layers/counts" in file else "X"
            if where not in file:
                raise DataError(f"{path} has neither X nor layers/counts; give an AnnData file.")
            values = _matrix(file[where], path)
            index = file["var"].attrs.get("_index", "_index") if "var" in file else None
            columns = [] if index is None else [*file["var"][index].asstr()[:]]
            labels = _categories(file["obs"][_CELL_TYPE]) if f"obs/{_CELL_TYPE}" in file else None
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read as an AnnData file ({_short(error)}); repair or replace it.") from error
    return from_numbers(values, labels=labels, columns=columns, splits=splits, name=path.stem)


def _matrix(stored: h5py.Dataset | h5py.Group, path: Path) -> np.ndarray:
    """Return a dense or sparse matrix of an AnnData file as an array (N, columns)."""
    from scipy import sparse

    if stored.attrs.get("encoding-type", "array") == "array":
        return np.asarray(stored[:])
    kinds = {"csr_matrix": sparse.csr_matrix, "csc_matrix": sparse.csc_matrix}
    kind = stored.attrs["encoding-type"]
    if kind not in kinds:
        raise DataError(f"{path} holds a matrix of type {kind}; store it dense or sparse by rows.")
    parts: Any = (stored["data"][:], stored["indices"][:], stored["indptr"][:])
    return np.asarray(kinds[kind](parts, shape=tuple(stored.attrs["shape"])).toarray())


def _categories(stored: Any) -> np.ndarray:
    if "codes" in stored:
        return np.asarray(stored["categories"].asstr()[:], str)[stored["codes"][:]]
    return np.asarray(stored.asstr()[:], str)


def _has_names(first: list[str], second: list[str]) -> bool:
    """Return whether the first line is a header: it has no number, or some column has a word above a number."""
    if not any(map(_is_number, first)):
        return True
    return any(not _is_number(a) and _is_number(b) for a, b in zip(first, second, strict=False))


def _is_number(cell: str) -> bool:
    try:
        float(cell.strip().strip('"'))
    except ValueError:
        return False
    return True


def _readable(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]
