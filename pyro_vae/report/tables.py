r"""Text tables with columns of fixed width, and the format of numbers in their cells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def format_table(columns: Sequence[tuple[str, int]], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table, starting with the column heads.

    Args:
        columns: Head and width of each column. As in printf, a positive width aligns right and a negative width aligns
            left. A right-aligned column is widened if a cell would touch the previous column.
        rows: Cells of each row, one per column.
    """
    heads, widths = zip(*columns, strict=True)
    lines = [heads, *rows]
    longest = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    widths = tuple(max(width, long + 1) if width > 0 else width for width, long in zip(widths, longest, strict=True))
    return ["".join(_padded(cell, width) for cell, width in zip(row, widths, strict=True)) for row in lines]


def _padded(cell: str, width: int) -> str:
    return f"{cell:<{-width}}" if width < 0 else f"{cell:>{width}}"


def format_number(value: float | None, form: str = ".2f") -> str:
    """Format a number with a format specification such as ``.2f``; None is a dash."""
    return "-" if value is None else format(value, form)


def format_with_error(value: float | None, error: float | None, form: str = ".2f") -> str:
    """Format a number +- its standard error, both with the same format specification; None is a dash."""
    return "-" if value is None else f"{value:{form}} +- {format_number(error, form)}"


def format_percent(value: float | None, error: float | None) -> str:
    """Format a fraction +- its standard error in percent; None is a dash."""
    value, error = (None if fraction is None else 100 * fraction for fraction in (value, error))
    return format_with_error(value, error, ".1f")
