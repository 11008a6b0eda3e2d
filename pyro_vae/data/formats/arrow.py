r"""Tables of Arrow and Parquet files, read by pyarrow, which is an optional extra."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_vae.errors import DataError
from pyro_vae.text import printable

if TYPE_CHECKING:
    import pyarrow as pa


def read_parquet(path: Path) -> pa.Table:
    """Read a Parquet file.

    Raises:
        DataError: it cannot be read, or pyarrow is not installed.
    """
    with _one_line(path, "Parquet"):
        from pyarrow import parquet

        # `parquet.read_table` would make columns of folders called key=value.
        with parquet.ParquetFile(path) as file:
            return file.read()


def read_streams(paths: Sequence[Path]) -> pa.Table:
    """Read files of Arrow's streaming format, one after the other, as one table that is mapped into memory.

    Raises:
        DataError: one cannot be read, is cut short or has other columns than the first, or pyarrow is not installed.
    """
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

    if not path.is_file():  # a pipe would be waited for
        raise DataError(f"{path} is absent, and the data set names it; repair or replace the folder.")
    with pa.memory_map(str(path)) as file:
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
