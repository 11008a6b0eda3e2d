r"""Arrow and Parquet tables, read by the optional dependency pyarrow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pyro_vae.errors import DataError
from pyro_vae.text import printable

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 64  # rows decoded at a time


class Saved(NamedTuple):
    """A lazily read table: a split of a data set on disk, or all of it."""

    where: str
    """Name of the table in error messages."""
    files: Sequence[Path]
    schema: pa.Schema
    read: Callable[[Path | None], pa.Table]
    """Reads the rows. Given a folder, they are memory-mapped, from a file written there if necessary; given None, they
    may be loaded into memory."""


def open_parquet(path: Path) -> Saved:
    """Open a Parquet file.

    Raises:
        DataError: Now or when the rows are read, if the file cannot be read or pyarrow is not installed.
    """
    with _one_line(path, "Parquet"):
        from pyarrow import parquet

        # Unlike `parquet.read_table`, which would add a column for each folder named key=value in the path.
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            return Saved(str(path), [path], schema, partial(_read_parquet, path, schema))


def _read_parquet(path: Path, schema: pa.Schema, folder: Path | None) -> pa.Table:
    import pyarrow as pa
    from pyarrow import parquet

    if folder is None:
        with _one_line(path, "Parquet"), parquet.ParquetFile(path) as file:
            return file.read()
    copy = folder / "table.arrow"
    with copy.open("wb") as stream, pa.ipc.new_stream(stream, schema) as writer:
        for batch in _batches(path):
            writer.write_batch(batch)
    table = _read_stream(copy)
    copy.unlink()  # the table stays mapped
    return table


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a Parquet file in batches."""
    from pyarrow import parquet

    with _one_line(path, "Parquet"), parquet.ParquetFile(path, memory_map=True) as file:
        yield from file.iter_batches(ROWS)


def open_streams(where: str, paths: Sequence[Path]) -> Saved:
    """Open files in Arrow's streaming format as one table, which is memory-mapped.

    Raises:
        DataError: Now or when the rows are read, if a file cannot be read, is truncated or has other columns than the
            first, or pyarrow is not installed.
    """
    with _one_line(paths[0], "an Arrow stream"):
        import pyarrow as pa

        with _mapped(paths[0]) as file:
            return Saved(where, paths, pa.ipc.open_stream(file).schema, lambda _: _read_streams(paths))


def _read_streams(paths: Sequence[Path]) -> pa.Table:
    table: Any = None
    for path in paths:
        with _one_line(path, "an Arrow stream"):
            import pyarrow as pa

            part = _read_stream(path)
            table = part if table is None else pa.concat_tables([table, part])
    return table


def _read_stream(path: Path) -> pa.Table:
    """Read a stream, and check for its end marker: a file truncated between two batches would otherwise be accepted."""
    import pyarrow as pa

    with _mapped(path) as file:
        reader, batches = pa.ipc.open_stream(file), []
        while True:
            end = file.tell()
            try:
                batches.append(reader.read_next_batch())
            except StopIteration:
                break
        if file.tell() == end or file.tell() != file.size():
            what = "is truncated" if file.tell() == end else "has trailing bytes after its end"
            raise DataError(f"{path} {what}; repair or replace it.")
        table = pa.Table.from_batches(batches, reader.schema)
    table.validate(full=True)  # image bytes are later sliced at these offsets, without a check of bounds
    return table


def _mapped(path: Path) -> pa.MemoryMappedFile:
    import pyarrow as pa

    if not path.is_file():  # opening a named pipe would block
        raise DataError(f"{path} is missing, but the data set refers to it; repair or replace the folder.")
    return pa.memory_map(str(path))


@contextmanager
def _one_line(path: Path, kind: str) -> Iterator[None]:
    """Convert errors of pyarrow, or its absence, to a one-line DataError that names the file."""
    try:
        import pyarrow as pa
    except ImportError as error:
        raise DataError(f"{path} needs pyarrow: pip install 'pyro_vae[data]'.") from error
    try:
        yield
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, NotImplementedError) as error:
        reason = printable(" ".join(str(error).split())[:120])
        raise DataError(f"{path} cannot be read as {kind} ({reason}); repair or replace it.") from error
