r"""Tables of Arrow and Parquet files, read by pyarrow, which is an optional extra."""

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

ROWS = 64  # that are decoded at a time


class Saved(NamedTuple):
    """A split of a data set on disk, or all of it, whose rows are not read yet."""

    where: str
    """What an error calls it."""
    files: Sequence[Path]
    schema: pa.Schema
    read: Callable[[Path | None], pa.Table]
    """Reads its rows: given a folder, into a file there that is mapped; given None, perhaps into memory."""


def open_parquet(path: Path) -> Saved:
    """Open a Parquet file.

    Raises:
        DataError: here or when it is read, it cannot be, or pyarrow is not installed.
    """
    with _one_line(path, "Parquet"):
        from pyarrow import parquet

        # `parquet.read_table` would make columns of folders called key=value.
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
    """Yield the rows of a Parquet file, some at a time."""
    from pyarrow import parquet

    with _one_line(path, "Parquet"), parquet.ParquetFile(path, memory_map=True) as file:
        yield from file.iter_batches(ROWS)


def open_streams(where: str, paths: Sequence[Path]) -> Saved:
    """Open files of Arrow's streaming format, which become one table that is mapped into memory.

    Raises:
        DataError: here or when they are read, one cannot be, is cut short or has other columns than the first, or
            pyarrow is not installed.
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
    """Read a stream up to the mark at its end, without which a file that is cut between two batches would pass."""
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
            what = "is cut short" if file.tell() == end else "goes on after its end"
            raise DataError(f"{path} {what}; repair or replace it.")
        table = pa.Table.from_batches(batches, reader.schema)
    table.validate(full=True)  # offsets are trusted afterwards, wherever they point
    return table


def _mapped(path: Path) -> pa.MemoryMappedFile:
    import pyarrow as pa

    if not path.is_file():  # a pipe would be waited for
        raise DataError(f"{path} is absent, and the data set names it; repair or replace the folder.")
    return pa.memory_map(str(path))


@contextmanager
def _one_line(path: Path, kind: str) -> Iterator[None]:
    """Turn what pyarrow, or its absence, raises into a DataError that names the file."""
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
