r"""Columns of Arrow tables: detection and reading of image files, pixels, labels and numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pyro_vae.data.formats.arrow import ROWS
from pyro_vae.data.formats.image_files import Encoded
from pyro_vae.errors import DataError
from pyro_vae.text import printable

if TYPE_CHECKING:
    import pyarrow as pa


class Part(NamedTuple):
    """The table of a split, or a slice of it."""

    where: str
    """Name of the table in error messages."""
    table: pa.Table
    first: int = 0
    """Index of the first row in error messages."""

    def row(self, index: int, name: str) -> str:
        """Return the name of a row of a column for error messages."""
        return f"{self.where}: row {self.first + index} of {printable(name)}"


def holds_files(kind: pa.DataType) -> bool:
    """Return whether a column of this type contains image files: structs with a field `bytes`."""
    from pyarrow import types

    return types.is_struct(kind) and any(
        field.name == "bytes" and (types.is_binary(field.type) or types.is_large_binary(field.type)) for field in kind
    )


def holds_pixels(kind: pa.DataType) -> bool:
    """Return whether a column of this type contains pixels: (nested) lists of uint8."""
    from pyarrow import types

    nested = False
    while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind, nested = kind.value_type, True
    return nested and types.is_uint8(kind)


def is_plain(kind: pa.DataType, labels: bool = False) -> bool:
    """Return whether a type is integers, booleans or strings, or, unless `labels`, floating-point numbers."""
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    if types.is_integer(kind) or types.is_boolean(kind) or types.is_string(kind) or types.is_large_string(kind):
        return True
    return types.is_floating(kind) and not labels


def read_files(part: Part, column: str) -> Iterator[Encoded]:
    """Yield the image files of a column, without copying their bytes."""
    row = 0
    for chunk in part.table.column(column).chunks:
        fields = dict(zip([field.name for field in chunk.type], chunk.flatten(), strict=True))
        paths = fields["path"].is_valid().to_pylist() if "path" in fields else [False] * len(chunk)
        for content, has_path in zip(_contents(fields["bytes"]), paths, strict=True):
            yield Encoded(part.where, f"row {row} of {printable(column)}", content, has_path)
            row += 1


def _contents(array: pa.Array) -> Iterator[memoryview | None]:
    """Yield the bytes of each row without a copy, unlike pyarrow's scalars."""
    import pyarrow as pa

    if not len(array):
        return
    _, offsets, content = array.buffers()
    width = np.int64 if pa.types.is_large_binary(array.type) else np.int32
    ends = np.frombuffer(offsets, width)[array.offset : array.offset + len(array) + 1].tolist()
    everything = memoryview(content or b"")
    for start, end, valid in zip(ends[:-1], ends[1:], array.is_valid().to_pylist(), strict=True):
        yield everything[start:end] if valid else None


def pieces_of_pixels(part: Part, name: str) -> Iterator[np.ndarray]:
    """Yield the array that `read_pixels` returns in chunks of rows."""
    shape: tuple[int, ...] | None = None
    for first in range(0, part.table.num_rows, ROWS):
        piece = read_pixels(Part(part.where, part.table.slice(first, ROWS), first), name, shape)
        shape = piece.shape[1:]
        yield piece


def read_pixels(part: Part, name: str, like: tuple[int, ...] | None = None) -> np.ndarray:
    """Return nested lists as an array (N, *pixels).

    Args:
        part: The table.
        name: Name of the column.
        like: Pixel shape of the first row of the column, if `part` is a later chunk.

    Raises:
        DataError: If rows differ in size, or a row is null or empty. The message names the row.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    values, shape = part.table.column(name), [part.table.num_rows]
    while True:
        per_row = math.prod(shape[1:])
        _check_filled(part, name, values, per_row)
        if values.type == pa.uint8():
            return values.to_numpy().reshape(shape)
        lengths = pc.list_value_length(values).to_numpy()
        length = like[len(shape) - 1] if like else int(lengths[0])
        if not length:
            raise DataError(f"{part.row(0, name)} holds no pixels; leave out such rows.")
        if (mismatched := np.flatnonzero(lengths != length)).size:
            raise DataError(
                f"{part.row(int(mismatched[0]) // per_row, name)} has lists of {lengths[mismatched[0]]} pixels, and "
                f"row 0 of {length}; give images of one size."
            )
        shape.append(length)
        values = pc.list_flatten(values)


def read_labels(part: Part, name: str) -> np.ndarray:
    """Return the integers, booleans or strings of a column, shape (N,).

    Raises:
        DataError: If a label is null or negative. The message names the row.
    """
    import pyarrow as pa

    column = part.table.column(name)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    _check_filled(part, name, column)
    if not pa.types.is_integer(column.type):
        return np.asarray(column.to_pylist())
    labels = column.to_numpy()
    if (labels < 0).any():  # Hugging Face's ClassLabel uses -1 for unknown labels
        row = int(np.flatnonzero(labels < 0)[0])
        raise DataError(f"{part.row(row, name)} is {labels[row]}, not a class; leave out such rows or the column.")
    return labels


def _check_filled(part: Part, name: str, values: pa.ChunkedArray, per_row: int = 1) -> None:
    if values.null_count:
        row = int(np.flatnonzero(values.is_null().to_numpy())[0]) // per_row
        raise DataError(f"{part.row(row, name)} is null, or contains nulls; leave out such rows or fill them.")
