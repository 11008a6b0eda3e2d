r"""Tables of numbers as data sets, e.g. measurements, spectra or gene counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.assembly import Array, assemble
from pyro_vae.data.collection import Collection
from pyro_vae.data.images import Observed
from pyro_vae.data.labels import Labels
from pyro_vae.data.splits import OWN_SPLITS, Shares
from pyro_vae.errors import DataError

_EXACT = 2**24  # float32 represents all integers up to this number
# float32 has seven significant digits. In a column whose mean is this many standard deviations from 0, three remain.
_FARTHEST = 1e4


@dataclass(frozen=True)
class Numbers(Collection):
    """A table: floating-point tensors (N, columns) in the units of the data, one per split, and optional labels.

    Args:
        columns: Names of the columns, for figures and error messages. If empty, columns are numbered.
        counts: Whether the numbers are counts: 0, 1, 2, ...

    Raises:
        DataError: If a column of real numbers is constant or non-finite over the training rows, or so far from 0 that
            its variation is lost in float32.
    """

    items: ClassVar[str] = "rows"

    columns: tuple[str, ...] = ()
    counts: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.columns:
            object.__setattr__(self, "columns", column_names(self.train.shape[1]))
        if self.counts:
            return
        std, mean = torch.std_mean(self.train.double(), 0)
        for name, spread, center in zip(self.columns, std.tolist(), mean.tolist(), strict=True):
            if not spread > 0:
                raise DataError(f"{self.name}: {name} is {center:g} in every training row; leave that column out.")
            if abs(center) > _FARTHEST * spread:
                raise DataError(
                    f"{self.name}: {name} is about {center:.6g} and varies by {spread:.2g}, which float32 cannot "
                    "resolve: subtract its mean."
                )

    def _described(self) -> str:
        return f"{len(self.columns)} {'counts' if self.counts else 'real numbers'}"

    @property
    def kind(self) -> str:
        """``counts``, or ``real`` for real numbers."""
        return "counts" if self.counts else "real"

    def observed(self, binarize: str = "none") -> ObservedNumbers:
        """Return the numbers as observed by a program. They are not binarized.

        Raises:
            DataError: If `binarize` is not ``none``.
        """
        if binarize != "none":
            raise DataError(f"{self.name} holds numbers, not pixels, to which --binarize {binarize} does not apply.")
        return ObservedNumbers(self, binarize)


@dataclass(frozen=True)
class ObservedNumbers(Observed):
    """Numbers as observed by a program: floats of torch's default dtype. Counts are dequantized for a density."""

    @property
    def level_bits(self) -> int | None:  # type: ignore[override]
        """0 for counts, whose levels have width 1, and None for real numbers, which have no levels."""
        return 0 if self.pixels.kind == "counts" else None

    def with_dequantization(self) -> ObservedNumbers:
        """Return the numbers as observed by a program whose likelihood is a density."""
        return replace(self, dequantize=True)

    def example(self) -> Tensor:
        """Return the first training row, shape (1, columns), without noise."""
        return self._placed(self.pixels.train[:1]).to(torch.get_default_dtype())

    def observe(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return numbers (B, columns), dequantized if necessary. See `Observed.observe` for the arguments."""
        values = self._placed(pixels).to(torch.get_default_dtype())
        if not (self.dequantize and self.pixels.kind == "counts"):
            return values
        device = values.device if generator is None else "cpu"
        return values + torch.rand(values.shape, generator=generator, device=device).to(values.device)


def column_names(num_columns: int) -> tuple[str, ...]:
    """Return default names for columns without names."""
    return tuple(f"column {index}" for index in range(num_columns))


def from_numbers(
    train: Array,
    test: Array | None = None,
    *,
    labels: Any = None,
    test_labels: Any = None,
    valid: Array | None = None,
    valid_labels: Any = None,
    columns: Sequence[str] = (),
    splits: Shares = OWN_SPLITS,
    name: str = "table",
) -> Numbers:
    """Return a data set from a table in memory.

    Args:
        train: Training rows, shape (N, columns). If all numbers of all splits are nonnegative integers, of any dtype,
            they are counts; otherwise, they are real numbers.
        test: Test rows, with the same columns.
        labels: Class of each training row, integers or strings, shape (N,).
        test_labels: Class of each test row.
        valid: Validation rows. They require test rows.
        valid_labels: Class of each validation row.
        columns: Names of the columns.
        splits: Fractions of training, validation and test rows; see `from_arrays`.
        name: Name of the data set.

    Raises:
        DataError: If a value is non-finite or not a number, or the data are otherwise invalid (see `Numbers` and
            `from_arrays`).
    """
    names = tuple(columns) or column_names(np.shape(train)[-1] if np.ndim(train) == 2 else 0)
    parts = [None if part is None else _numbers(part, name, names) for part in (train, valid, test)]
    given = [part for part in parts if part is not None]
    counts = all(bool(((part >= 0) & (part == part.round())).all()) for part in given)
    largest = max((float(part.max()) for part in given), default=0.0)
    if counts and largest > _EXACT:
        raise DataError(f"{name}: a count is {largest:.0f}; float32 has all integers only up to {_EXACT:,}.")

    def build(name: str, train: Tensor, valid: Tensor, test: Tensor, labels: Labels | None, how: str) -> Numbers:
        # Converted after the split, so that the split does not depend on the default dtype.
        dtype = torch.get_default_dtype()
        return Numbers(name, train.to(dtype), valid.to(dtype), test.to(dtype), labels, how, names, counts)

    return assemble(build, name, parts, (labels, valid_labels, test_labels), splits)


def _numbers(values: Array, name: str, columns: Sequence[str]) -> Tensor:
    """Return a table as a finite float64 tensor (N, columns)."""
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim != 2 or 0 in array.shape:
        raise DataError(f"{name}: numbers have shape {array.shape}; it must be (N, columns).")
    if array.dtype.kind not in "iufb":
        raise DataError(f"{name}: numbers are {array.dtype}; give integers or floating-point numbers.")
    table = torch.from_numpy(np.require(array, np.float64, ["C", "W"]))  # torch warns about read-only memory
    if table.shape[1] != len(columns):
        raise DataError(f"{name}: {table.shape[1]} columns, but {len(columns)} names for them.")
    bad = (~table.isfinite()).nonzero()
    if len(bad):
        row, column = bad[0].tolist()
        raise DataError(
            f"{name}: row {row} of {columns[column]} is {table[row, column].item()}; leave out such rows or fill them."
        )
    return table
