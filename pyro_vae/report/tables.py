r"""Text tables: columns of fixed widths, and the numbers in their cells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def format_table(columns: Sequence[tuple[str, int]], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table, the column heads first.

    Args:
        columns: head and width of each column. As in printf, a positive width aligns to the right and a negative one
            to the left. A column is wider where a cell would touch the column before it.
        rows: of cells, one for each column.
    """
    heads, widths = zip(*columns, strict=True)
    lines = [heads, *rows]
    longest = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    widths = tuple(max(width, long + 1) if width > 0 else width for width, long in zip(widths, longest, strict=True))
    return ["".join(_padded(cell, width) for cell, width in zip(row, widths, strict=True)) for row in lines]


def _padded(cell: str, width: int) -> str:
    return f"{cell:<{-width}}" if width < 0 else f"{cell:>{width}}"


def format_number(value: float | None, form: str = ".2f") -> str:
    """Return a number in a format such as ``.2f``; a dash for None."""
    return "-" if value is None else format(value, form)


def format_with_error(value: float | None, error: float | None, form: str = ".2f") -> str:
    """Return a number +- its standard error, both in a format; a dash for None."""
    return "-" if value is None else f"{value:{form}} +- {format_number(error, form)}"


def format_percent(value: float | None, error: float | None) -> str:
    """Return a share +- its standard error in percent; a dash for None."""
    value, error = (None if share is None else 100 * share for share in (value, error))
    return format_with_error(value, error, ".1f")
