"""Unusable tables: each is rejected with one line that says where, and files that a table names are never opened."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers.arrow_tables import image_files, save, save_splits
from helpers.own_data import error_with_and_without_cache
from pyarrow import parquet

from pyro_vae.data import from_path

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (40, 6, 5), dtype=np.uint8)
IMAGES = image_files(GRAY)
CLASSES = np.arange(40) % 3
FIRST = "data-00000-of-00001.arrow"

Write = Callable[[Path], object]


def write(images: Any = IMAGES, **columns: Any) -> Write:
    return lambda path: parquet.write_table(pa.table({"image": images, **columns}), path)


def spoiled(spoil: Callable[[Path], object]) -> Write:
    """Return a function that saves good images and then damages their folder."""

    def write(path: Path) -> None:
        save(path, pa.table({"image": IMAGES, "label": CLASSES}))
        spoil(path)

    return write


def cut(last: int) -> Write:
    return spoiled(lambda path: (path / FIRST).write_bytes((path / FIRST).read_bytes()[:-last]))


def state(**changes: object) -> Write:
    return spoiled(lambda path: (path / "state.json").write_text(json.dumps({"_data_files": [], **changes})))


def splits(*names: object, **tables: pa.Table) -> Write:
    def write(path: Path) -> None:
        save_splits(path, **tables)
        if names:
            (path / "dataset_dict.json").write_text(json.dumps({"splits": names}))

    return write


def lists(*values: object) -> pa.Array:
    return pa.array(values, pa.list_(pa.list_(pa.uint8())))


def bad_offsets(path: Path) -> None:
    """Write lists whose offsets point far beyond their values: without validation, arbitrary memory would be read."""
    offsets = pa.py_buffer(np.array([0, 10**8, 2], np.int32).tobytes())
    values = pa.Array.from_buffers(pa.list_(pa.uint8()), 2, [None, offsets], children=[pa.array([1, 2], pa.uint8())])
    save(path, pa.table({"pixels": values}))


ROWS = pa.table({"image": IMAGES, "label": CLASSES})
BAD: dict[str, tuple[Write, str]] = {
    "a stream cut within a batch": (cut(300), f"data/{FIRST} cannot be read as an Arrow stream"),
    "a stream cut after a batch": (cut(8), f"data/{FIRST} is truncated; repair or replace it"),
    "a stream and more": (
        spoiled(lambda path: (path / FIRST).write_bytes(2 * (path / FIRST).read_bytes())),
        "has trailing bytes after its end",
    ),
    "no stream": (spoiled(lambda path: (path / FIRST).write_bytes(b"nothing")), "cannot be read as an Arrow stream"),
    "an empty file": (spoiled(lambda path: (path / FIRST).write_bytes(b"")), "cannot be read as an Arrow stream"),
    "offsets out of bounds": (bad_offsets, "cannot be read as an Arrow stream"),
    "a missing file": (spoiled(lambda path: (path / FIRST).unlink()), f"data/{FIRST} is missing"),
    "a file elsewhere": (
        state(_data_files=[{"filename": "../other/" + FIRST}]),
        f"state.json names ../other/{FIRST}, which is not a file of the folder",
    ),
    "a file by its whole path": (state(_data_files=[{"filename": "/etc/passwd"}]), "which is not a file of the folder"),
    "the folder above": (state(_data_files=[{"filename": ".."}]), "data/.. is missing"),
    "a file of no name": (state(_data_files=[{}]), "names None, which is not a file of the folder"),
    "no files": (state(), "state.json names no data files"),
    "a list of no files": (state(_data_files="all"), "state.json has no list _data_files"),
    "rows chosen elsewhere": (state(_indices_data_files=[{"filename": "i.arrow"}]), "selected by an index file"),
    "JSON cut short": (spoiled(lambda path: (path / "state.json").write_text("{")), "state.json cannot be read ("),
    "no object": (spoiled(lambda path: (path / "state.json").write_text("[]")), "state.json is not a JSON object"),
    "no training split": (splits(test=ROWS), "has splits test; give train"),
    "no test split": (splits(train=ROWS, validation=ROWS), "has splits train, validation; give train, train and test"),
    "two validation splits": (splits(train=ROWS, valid=ROWS, val=ROWS, test=ROWS), "train, valid, val, test; give"),
    "a split that is no name": (splits("../other", {}, train=ROWS), "has splits ../other, {}; give"),
    "a split that is absent": (splits("train", "test", train=ROWS), "test/state.json cannot be read (No such file"),
    "an empty split": (splits(train=ROWS, test=ROWS[:0]), "data/test holds no rows"),
    "labels of one split": (
        splits(train=ROWS, test=ROWS.drop(["label"])),
        "data/test has no column label of type int64, but ",
    ),
    "labels of two types": (
        splits(train=ROWS, test=ROWS.set_column(1, "label", pa.array(list("abcd" * 10)))),
        "data/test has no column label of type int64",
    ),
    "columns of one split": (
        splits(train=pa.table({"a": CLASSES, "b": CLASSES}), test=pa.table({"a": CLASSES})),
        "the splits differ in their columns",
    ),
    "no images": (
        lambda path: parquet.write_table(pa.table({"image": [[0.5, 1.0]] * 40, "label": CLASSES}), path),
        "image is of type list<element: double>, which is not images (structs of bytes and path, or",
    ),
    "two columns of images": (
        write(mask=IMAGES),
        "image, mask hold images, but only one column may; leave out the others",
    ),
    "two columns of labels": (write(label=CLASSES, y=CLASSES), "label, y are named like labels, but only one may be"),
    "two columns of one name": (
        lambda path: save(path, pa.Table.from_arrays([IMAGES, IMAGES], ["image", "image"])),
        "has two columns of the same name",
    ),
    "no rows": (lambda path: parquet.write_table(ROWS[:0], path), "data holds no rows"),
    "no label": (write(label=[0] * 17 + [None] * 23), "data: row 17 of label is null"),
    "a label that is not known": (write(label=[0] * 17 + [-1] * 23), "data: row 17 of label is -1, not a class"),
    "rows of other sizes": (
        lambda path: save(path, pa.table({"x": lists(*[[[1, 2], [3, 4]]] * 9, [[1, 2], [3]])})),
        "data: row 9 of x has lists of 1 pixels, and row 0 of 2",
    ),
    "a null among pixels": (
        lambda path: save(path, pa.table({"x": lists(*[[[1, 2], [3, 4]]] * 9, [[1, 2], [None, 3]])})),
        "data: row 9 of x is null, or contains nulls",
    ),
    "a null among rows": (
        lambda path: save(path, pa.table({"x": lists([[1]], None, [[1]])})),
        "data: row 1 of x is null, or contains nulls",
    ),
    "no pixels": (lambda path: save(path, pa.table({"x": lists([], [])})), "data: row 0 of x holds no pixels"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_table_is_rejected_with_one_line(kind: str, tmp_path: Path) -> None:
    write, says = BAD[kind]
    save(tmp_path / "other", ROWS)  # good data that no table may refer to
    write(tmp_path / "data")
    message = error_with_and_without_cache(from_path, tmp_path / "data", tmp_path / "cache")
    assert says in message
    assert message.isprintable()  # no line breaks in the message
    assert str(tmp_path / "data") in message
