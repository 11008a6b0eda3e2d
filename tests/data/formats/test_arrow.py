"""Tables of images: each format gives the same pixels, labels and splits as a folder or an array of the images."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers.arrow_tables import image_files, save, save_splits
from helpers.own_data import identical
from PIL import Image
from pyarrow import parquet

from pyro_vae.data import from_arrays, from_file, from_folder, from_numbers, from_path, load

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (40, 6, 5), dtype=np.uint8)
COLOR = RNG.integers(0, 256, (40, 6, 5, 3), dtype=np.uint8)
CLASSES = np.arange(40) % 3
WORDS = np.array(["ash", "oak", "yew"])


def write_folder(folder: Path, images: np.ndarray, classes: np.ndarray = CLASSES) -> Path:
    for n, image in enumerate(images):
        path = folder / WORDS[classes[n]] / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def table(images: Any, **columns: Any) -> pa.Table:
    return pa.table({"image": image_files(images), **columns})


FORMATS: dict[str, Callable[[Path, pa.Table], object]] = {
    "a saved data set": save,
    "three files": lambda path, rows: save(path, rows, shards=3),
    "a dictionary of one split": lambda path, rows: save_splits(path, train=rows),
    "Parquet": lambda path, rows: parquet.write_table(rows, path, row_group_size=9),
}
LABELS: dict[str, Any] = {
    "label": CLASSES,
    "fine_label": pa.array(CLASSES, pa.int8()),
    "Class": WORDS[CLASSES],
    "target": pa.array(WORDS[CLASSES]).dictionary_encode(),
}


@pytest.mark.parametrize("images", [GRAY, COLOR], ids=["gray", "color"])
@pytest.mark.parametrize("name", FORMATS)
def test_image_files_in_a_table_match_a_folder(name: str, images: np.ndarray, tmp_path: Path) -> None:
    FORMATS[name](tmp_path / "data", table(images, label=CLASSES))
    assert identical(from_path(tmp_path / "data"), from_folder(write_folder(tmp_path / "own", images)))


@pytest.mark.parametrize("name", LABELS)
def test_labels_may_be_integers_or_words_under_common_names(name: str, tmp_path: Path) -> None:
    save(tmp_path / "data", table(GRAY, **{name: LABELS[name]}))
    assert identical(from_path(tmp_path / "data"), from_folder(write_folder(tmp_path / "own", GRAY)))


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_image_options_apply_as_in_a_folder(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Sizes differ and one image is bad: images are cropped, made gray and counted as in a folder."""
    images = [image[: 4 + n % 3] for n, image in enumerate(COLOR)]
    for n, image in enumerate(images):
        (tmp_path / "own" / WORDS[CLASSES[n]]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "own" / WORDS[CLASSES[n]] / f"{n}.png")
    files = image_files(images).to_pylist()
    files[17]["bytes"] = b"not an image"
    (tmp_path / "own" / WORDS[CLASSES[17]] / "17.png").write_bytes(b"not an image")
    rows = pa.table({"image": files, "label": CLASSES})
    FORMATS["Parquet" if kind == "file" else "three files"](tmp_path / "data", rows)
    options: dict[str, Any] = {"image_size": 3, "channels": 1, "skip_bad": True, "splits": (0.6, 0.2, 0.2)}
    found, expected = (load(str(tmp_path / each), tmp_path / "root", **options) for each in ("data", "own"))
    assert identical(found, expected)
    assert "row 17 of image cannot be read as an image" in caplog.text


def nested(images: np.ndarray, *fixed: int) -> pa.Array:
    """Return images as nested lists; the dimensions in `fixed` are fixed-size lists."""
    values = pa.array(images.reshape(-1))
    for axis in range(images.ndim - 1, 0, -1):
        length = images.shape[axis]
        if axis in fixed:
            values = pa.FixedSizeListArray.from_arrays(values, length)
        else:
            values = pa.ListArray.from_arrays(pa.array(np.arange(0, len(values) + 1, length), pa.int32()), values)
    return values


@pytest.mark.parametrize("fixed", [(), (1,), (1, 2), (2,)])
@pytest.mark.parametrize("name", FORMATS)
def test_nested_lists_of_bytes_match_an_array(name: str, fixed: tuple[int, ...], tmp_path: Path) -> None:
    FORMATS[name](tmp_path / "data", pa.table({"pixels": nested(GRAY, *fixed), "y": CLASSES}))
    assert identical(from_path(tmp_path / "data"), from_arrays(GRAY, labels=CLASSES))


def test_lists_of_colors_and_of_vectors_match_arrays(tmp_path: Path) -> None:
    colors = np.moveaxis(COLOR, -1, 1)
    for name, lists, images in (
        ("last", COLOR, colors),
        ("first", colors, colors),
        ("flat", *[GRAY.reshape(40, 30)] * 2),
    ):
        save(tmp_path / name, pa.table({"pixels": nested(lists)}))
        assert identical(from_path(tmp_path / name), from_arrays(images))


@pytest.mark.parametrize("name", ["validation", "valid", "val"])
def test_splits_are_kept(name: str, tmp_path: Path) -> None:
    rows = table(GRAY, label=CLASSES)
    save_splits(tmp_path / "data", train=rows[:25], **{name: rows[25:31]}, test=rows[31:])
    for split, part in (("train", slice(25)), ("valid", slice(25, 31)), ("test", slice(31, 40))):
        write_folder(tmp_path / "own" / split, GRAY[part], CLASSES[part])
    assert identical(from_path(tmp_path / "data"), from_folder(tmp_path / "own"))


def test_missing_validation_split_is_taken_from_train(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = table(GRAY, label=CLASSES)
    save_splits(tmp_path / "data", test=rows[31:], extra=rows[:3], train=rows[:31])
    for split, part in (("train", slice(31)), ("test", slice(31, 40))):
        write_folder(tmp_path / "own" / split, GRAY[part], CLASSES[part])
    assert identical(from_path(tmp_path / "data"), from_folder(tmp_path / "own"))
    assert "Left out: splits extra of" in caplog.text


def test_splits_of_pixels_and_of_numbers_are_kept(tmp_path: Path) -> None:
    numbers = RNG.normal(size=(40, 2))
    pixels = pa.table({"pixels": nested(GRAY), "y": CLASSES})
    columns = pa.table({"a": numbers[:, 0], "b": numbers[:, 1], "y": CLASSES})
    parts = {"train": slice(25), "validation": slice(25, 31), "test": slice(31, 40)}
    for name, rows in (("pixels", pixels), ("numbers", columns)):
        save_splits(tmp_path / name, **{split: rows[part] for split, part in parts.items()})
    for name, build, values in (("pixels", from_arrays, GRAY), ("numbers", from_numbers, numbers)):
        train, valid, test = ((values[part], CLASSES[part]) for part in parts.values())
        expected = build(train[0], test[0], valid=valid[0], labels=train[1], test_labels=test[1], valid_labels=valid[1])
        assert identical(from_path(tmp_path / name), expected)


def test_saved_table_of_numbers_is_read_as_numbers(tmp_path: Path) -> None:
    numbers = RNG.normal(size=(40, 2))
    save(tmp_path / "data", pa.table({"a": numbers[:, 0], "kind": WORDS[CLASSES], "b": numbers[:, 1]}), shards=2)
    assert identical(from_path(tmp_path / "data"), from_numbers(numbers, labels=CLASSES))


def test_other_columns_are_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = {"id": np.arange(40), "target": RNG.normal(size=40), "caption": ["tree"] * 40}
    parquet.write_table(table(GRAY, label=CLASSES, **other), tmp_path / "data")
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        found = from_file(tmp_path / "data")
    assert identical(found, from_folder(write_folder(tmp_path / "own", GRAY)))
    assert "Left out: columns id, target, caption of" in caplog.text


def test_folder_named_like_a_partition_adds_no_column(tmp_path: Path) -> None:
    numbers = RNG.normal(size=(40, 1))
    (tmp_path / "year=2020").mkdir()
    parquet.write_table(pa.table({"a": numbers[:, 0]}), tmp_path / "year=2020" / "data.parquet")
    found = from_file(tmp_path / "year=2020" / "data.parquet")
    assert found.columns == ("a",)  # type: ignore[attr-defined]
