"""Tables: columns stay aligned and separated, whatever the numbers."""

from __future__ import annotations

from pyro_vae.report.tables import format_table


def test_columns_have_their_widths() -> None:
    assert format_table([("run", -6), ("ELBO", 8)], [("a", "-1.50"), ("bcd", "-23.45")]) == [
        "run       ELBO",
        "a        -1.50",
        "bcd     -23.45",
    ]


def test_full_cells_are_separated_from_the_previous_column() -> None:
    lines = format_table([("", -4), ("a", 4), ("b", 5)], [("x", "-", "12345"), ("y", "1.5", "-123456.7")])
    assert [line.split() for line in lines] == [["a", "b"], ["x", "-", "12345"], ["y", "1.5", "-123456.7"]]
    assert len({len(line) for line in lines}) == 1
