"""Tables of a user: every row occurs once and unchanged, counts are told from real numbers, bad rows are rejected."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.calls import one_line

from pyro_vae.data import DataError, from_numbers

RNG = np.random.default_rng(0)
REAL = RNG.normal(3.0, 2.0, (300, 3))
COUNTS = RNG.poisson(4.0, (300, 5))


def rows(table: torch.Tensor) -> list[tuple[float, ...]]:
    return sorted(map(tuple, table.tolist()))


@pytest.mark.parametrize("values", [REAL, torch.as_tensor(REAL), REAL.astype(">f8"), np.asfortranarray(REAL)], ids=type)
def test_every_row_is_in_one_split_unchanged(values: np.ndarray) -> None:
    table = from_numbers(values)
    assert table.kind == "real"
    assert rows(torch.cat([table.train, table.valid, table.test])) == rows(torch.as_tensor(REAL))
    assert torch.equal(table.observed().split("test"), table.test)


@pytest.mark.parametrize("dtype", ["i8", "u2", "f4", "f8", "u1"])
def test_counts_are_recognized_by_their_values(dtype: str) -> None:
    table = from_numbers(COUNTS.astype(dtype), labels=np.arange(300) % 4)
    assert table.kind == "counts"
    assert str(table).endswith("rows of 5 counts, 4 classes, split by their content")
    assert rows(torch.cat([table.train, table.valid, table.test])) == rows(torch.as_tensor(COUNTS).double())
    assert from_numbers(COUNTS - 1.0).kind == "real"
    assert from_numbers(COUNTS / 2).kind == "real"


def test_test_rows_contribute_to_the_type_of_the_numbers() -> None:
    """Counts in training and halves in the test split are real numbers in both."""
    table = from_numbers(COUNTS, COUNTS[:20] / 2)
    assert table.kind == "real"
    assert torch.equal(table.test, torch.as_tensor(COUNTS[:20] / 2))


def test_counts_are_dequantized_for_densities() -> None:
    """x + u with u ~ U[0, 1): the count is its floor, and the noise is the same in every evaluation."""
    observed = from_numbers(COUNTS).observed().with_dequantization()
    noisy = observed.split("test")
    assert torch.equal(noisy.floor(), observed.pixels.test)
    assert not torch.equal(noisy, observed.pixels.test)
    assert torch.equal(noisy, observed.split("test"))
    real = from_numbers(REAL).observed().with_dequantization()
    assert torch.equal(real.split("test"), real.pixels.test)


def with_value(value: float) -> np.ndarray:
    table = REAL.copy()
    table[7, 1] = value
    return table


BAD = {
    "NaN": (with_value(np.nan), "row 7 of b is nan; leave out such rows or fill them"),
    "infinity": (with_value(-np.inf), "row 7 of b is -inf"),
    "a constant column": (REAL * [1, 0, 1] + [0, 2, 0], "b is 2 in every training row; leave that column out"),
    "a column far from zero": (REAL + np.array([0, 1e7, 0]), "b is about 1e+07 and varies by 1.9"),
    "counts beyond float32": (np.int64(2) ** 30 + COUNTS[:, :3], "float32 has all integers only up to 16,777,216"),
    "words": (REAL.astype("U6"), "numbers are <U6; give integers or floating-point numbers"),
    "objects": (REAL.astype("O"), "numbers are object"),
    "complex numbers": (REAL.astype("c16"), "numbers are complex128"),
    "one dimension": (REAL[:, 0], "numbers have shape (300,); it must be (N, columns)"),
    "three dimensions": (REAL[None], "numbers have shape (1, 300, 3)"),
    "no rows": (REAL[:0], "numbers have shape (0, 3)"),
    "more columns than names": (np.hstack([REAL, REAL]), "6 columns, but 3 names for them"),
    "one row": (REAL[:1], "of 1 items, none falls into the split"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_numbers_are_rejected_with_one_line(kind: str) -> None:
    values, says = BAD[kind]
    with pytest.raises(DataError) as caught:
        from_numbers(values, columns=["a", "b", "c"], name="mine")
    message = one_line(caught.value)
    assert message.startswith("mine: ")
    assert says in message


def test_numbers_are_not_binarized() -> None:
    with pytest.raises(DataError, match="holds numbers, not pixels"):
        from_numbers(REAL).observed("threshold")
