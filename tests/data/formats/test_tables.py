"""Files of tables: each format gives the same rows, labels and splits; invalid files are rejected with one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from helpers.calls import one_line
from scipy import sparse

from pyro_vae.data import DataError, Numbers, from_file, from_numbers

RNG = np.random.default_rng(0)
FRAME = pd.DataFrame(RNG.normal(size=(200, 3)).round(6), columns=["width", "height", "1"])
KINDS = np.array(["ash", "oak", "yew"])[np.arange(200) % 3]
COUNTS = RNG.poisson(1.0, (200, 6))

Write = Callable[[Path], object]
SPLITS = ("train", "valid", "test")


def expected() -> Numbers:
    return from_numbers(FRAME.to_numpy(), labels=KINDS, columns=list(FRAME.columns))


def same(a: Numbers, b: Numbers) -> bool:
    assert a.labels is not None
    assert b.labels is not None
    pairs = [(getattr(x, split), getattr(y, split)) for x, y in ((a, b), (a.labels, b.labels)) for split in SPLITS]
    return a.columns == b.columns and a.counts == b.counts and all(torch.equal(*pair) for pair in pairs)


WITH_KINDS = FRAME.assign(kind=KINDS)
FORMATS: dict[str, Write] = {
    "commas": lambda path: WITH_KINDS.to_csv(path, index=False),
    "tabs": lambda path: WITH_KINDS.to_csv(path, index=False, sep="\t"),
    "semicolons": lambda path: WITH_KINDS.to_csv(path, index=False, sep=";"),
    "a mark of UTF-8": lambda path: WITH_KINDS.to_csv(path, index=False, encoding="utf-8-sig"),
    "line ends of Windows": lambda path: WITH_KINDS.to_csv(path, index=False, lineterminator="\r\n"),
    "quotes": lambda path: WITH_KINDS.to_csv(path, index=False, quoting=2),
    "labels first": lambda path: WITH_KINDS[["kind", *FRAME.columns]].to_csv(path, index=False),
    "labels by number": lambda path: FRAME.assign(Label=np.arange(200) % 3).to_csv(path, index=False),
    "Parquet": lambda path: WITH_KINDS.to_parquet(path),
    "categories in Parquet": lambda path: FRAME.assign(kind=pd.Categorical(KINDS)).to_parquet(path),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats_give_the_same_table(name: str, tmp_path: Path) -> None:
    FORMATS[name](tmp_path / "data")  # the format is recognized by content
    table = from_file(tmp_path / "data")
    assert isinstance(table, Numbers)
    assert same(table, expected())


def test_columns_without_names_are_numbered(tmp_path: Path) -> None:
    WITH_KINDS.to_csv(tmp_path / "data", index=False, header=False)
    table = from_file(tmp_path / "data")
    assert isinstance(table, Numbers)
    assert table.columns == ("column 0", "column 1", "column 2")
    assert torch.equal(table.train, expected().train)


def write_h5ad(path: Path, where: str = "X", kind: str = "dense", values: object = None) -> None:
    """Write a file like AnnData's: a matrix, its column names, and the type of each cell as a category."""
    with h5py.File(path, "w") as file:
        words = h5py.string_dtype()
        file.create_group("var").attrs["_index"] = "gene"
        file["var"]["gene"] = np.array([f"g{n}" for n in range(6)], dtype=words)
        cells = file.create_group("obs/cell_type")
        cells["categories"], cells["codes"] = np.array(["ash", "oak", "yew"], dtype=words), np.arange(200) % 3
        if where != "X":
            file["X"] = np.log1p(COUNTS)
        if values is None:
            file[where] = COUNTS.astype("f4")
            return
        group = file.create_group(where)
        group.attrs.update({"encoding-type": kind, "shape": COUNTS.shape})
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(values, name)


@pytest.mark.parametrize("where", ["X", "layers/counts"])
@pytest.mark.parametrize("kind", ["dense", "csr_matrix", "csc_matrix"])
def test_counts_of_cells_are_read_dense_or_sparse(kind: str, where: str, tmp_path: Path) -> None:
    values = None if kind == "dense" else getattr(sparse, kind)(COUNTS.astype("f4"))
    write_h5ad(tmp_path / "data", where, kind, values)
    table = from_file(tmp_path / "data")
    assert isinstance(table, Numbers)
    assert same(table, from_numbers(COUNTS, labels=KINDS, columns=[f"g{n}" for n in range(6)]))


@pytest.mark.parametrize("values", [FRAME.to_numpy(), FRAME.to_numpy(np.float32).clip(0, 1)])
def test_array_rows_that_are_not_levels_are_numbers(values: np.ndarray, tmp_path: Path) -> None:
    """Also between 0 and 1, where rounding to 255 levels would lose information."""
    np.save(tmp_path / "data", values)
    table = from_file(tmp_path / "data.npy")
    assert table.kind == "real"
    assert torch.equal(table.train, from_numbers(values).train)


def labelled(path: Path, **columns: object) -> None:
    FRAME.assign(**columns).to_csv(path, index=False)


BAD: dict[str, tuple[Write, str]] = {
    "row numbers": (FRAME.to_csv, "column 0 has no name (row numbers?); name it or leave it out"),
    "two columns of words": (
        lambda path: labelled(path, kind=KINDS, place=KINDS),
        "kind, place are not numbers, but only one column may hold labels",
    ),
    "a gap": (lambda path: labelled(path, depth=[0.1] * 5 + [None] + [0.2] * 194), "row 5 of depth is nan"),
    "a gap among labels": (
        lambda path: labelled(path, kind=[None, *KINDS[1:]]),
        "row 0 of kind has no label",
    ),
    "labels alone": (lambda path: pd.DataFrame({"kind": KINDS}).to_csv(path, index=False), "has no column of numbers"),
    "prose": (lambda path: path.write_text("No table\nbut some\nlines.\n" * 9), "has no column of numbers"),
    "lines of other lengths": (lambda path: path.write_text("a,b\n1,2\n1,2,3\n"), "cannot be read as a table"),
    "not UTF-8": (lambda path: path.write_bytes(b"\xff\xfe1,2\n"), "cannot be read as a table"),
    "bytes": (lambda path: path.write_bytes(b"abc\0def"), "has an unknown format"),
    "nothing": (lambda path: path.write_bytes(b""), "is empty"),
    "Parquet cut short": (
        lambda path: (FRAME.to_parquet(path), path.write_bytes(path.read_bytes()[:-100])),
        "cannot be read as Parquet",
    ),
    "HDF5 of another kind": (lambda path: h5py.File(path, "w").close(), "has neither X nor layers/counts"),
    "HDF5 cut short": (
        lambda path: (write_h5ad(path), path.write_bytes(path.read_bytes()[:3000])),
        "cannot be read as an AnnData file",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_file_is_rejected_with_one_line(kind: str, tmp_path: Path) -> None:
    write, says = BAD[kind]
    write(tmp_path / "data")
    with pytest.raises(DataError) as caught:
        from_file(tmp_path / "data")
    message = one_line(caught.value)
    assert says in message
    assert "data" in message
