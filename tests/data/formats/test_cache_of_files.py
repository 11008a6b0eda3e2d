"""The cache of arrays and tables of images: equal to reading without a cache, decoded in pieces and only once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers.arrow_tables import image_files, save, save_splits
from helpers.own_data import error_with_and_without_cache, identical
from pyarrow import parquet

from pyro_vae.data import from_path, load, npy
from pyro_vae.data.formats import array_files, arrow, cache, columns, decoding

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (40, 6, 5), dtype=np.uint8)
COLOR = RNG.integers(0, 256, (40, 6, 5, 3), dtype=np.uint8)
CLASSES = np.arange(40) % 3
FILES = pa.table({"image": image_files([*GRAY[:20], *COLOR[20:]]), "label": CLASSES})
PIXELS = pa.table({"x": pa.array(COLOR.tolist(), pa.list_(pa.list_(pa.list_(pa.uint8(), 3)))), "y": CLASSES})
HALVES = {"x_train": COLOR[:30], "x_test": COLOR[30:], "y_train": CLASSES[:30], "y_test": CLASSES[30:]}


def lists(images: Any) -> pa.Table:
    values = [None if image is None else image.tolist() for image in images]
    return pa.table({"x": pa.array(values, pa.list_(pa.list_(pa.uint8())))})


def write_npy(path: Path, images: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, images)


def write_npz(path: Path, save: Callable[..., None] = np.savez_compressed, **arrays: np.ndarray) -> None:
    with path.open("wb") as file:
        save(file, **arrays)


FORMATS: dict[str, Callable[[Path], object]] = {
    ".npy": lambda path: write_npy(path, COLOR),
    "rows of .npy": lambda path: write_npy(path, GRAY.reshape(40, 30)),
    "Fortran's order": lambda path: write_npy(path, np.asfortranarray(GRAY)),  # read into memory, not cached
    ".npz": lambda path: write_npz(path, np.savez, x=GRAY, y=CLASSES),
    "a compressed .npz": lambda path: write_npz(path, x=GRAY, y=CLASSES[:, None]),
    "floats": lambda path: write_npz(path, x=(COLOR / 255).astype(">f4")),
    "splits of .npz": lambda path: write_npz(path, **HALVES),
    "image files in Parquet": lambda path: parquet.write_table(FILES, path, row_group_size=9),
    "pixels in Parquet": lambda path: parquet.write_table(PIXELS, path),
    "saved image files": lambda path: save(path, FILES, shards=3),
    "saved pixels": lambda path: save(path, PIXELS, shards=2),
    "splits of image files": lambda path: save_splits(path, test=FILES[:9], train=FILES[9:]),
    "splits of pixels": lambda path: save_splits(path, train=PIXELS[:25], val=PIXELS[25:31], test=PIXELS[31:]),
}
KEPT = [name for name in FORMATS if name != "Fortran's order"]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Split the forty images over several pieces."""
    monkeypatch.setattr(array_files, "_PIECE", 200)
    monkeypatch.setattr(arrow, "ROWS", 7)
    monkeypatch.setattr(columns, "ROWS", 7)


@pytest.fixture
def no_decoder(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function after which reading an array, a table or an image file fails."""

    def refuse(*args: object) -> None:
        raise AssertionError("decoded")

    def start() -> None:
        monkeypatch.setattr(decoding, "read_image", refuse)
        monkeypatch.setattr(npy, "_content", refuse)
        monkeypatch.setattr(npy, "map_array", refuse)
        monkeypatch.setattr(arrow, "_read_stream", refuse)
        monkeypatch.setattr(arrow, "_read_parquet", refuse)

    return start


def entries(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir()) if cache.exists() else []


@pytest.mark.parametrize("name", FORMATS)
def test_cached_images_equal_those_read_into_memory(name: str, tmp_path: Path, no_decoder: Callable[[], None]) -> None:
    FORMATS[name](tmp_path / "data")
    expected = from_path(tmp_path / "data")
    found = from_path(tmp_path / "data", cache=tmp_path / "cache")
    assert identical(found, expected)
    assert str(found) == str(expected)
    if name in KEPT:
        no_decoder()
    (tmp_path / "data").rename(tmp_path / "moved")
    found = from_path(tmp_path / "moved", cache=tmp_path / "cache")
    assert identical(found, expected)
    assert str(found) == str(expected).replace("data:", "moved:", 1)
    files = sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert files == (["entry.json", "images.npy"] if name in KEPT else [])


def test_entries_depend_on_options_and_content(tmp_path: Path) -> None:
    path, kept = tmp_path / "data", tmp_path / "cache"
    parquet.write_table(FILES, path)
    tried: list[dict[str, Any]] = [{}, {"size": 4}, {"channels": 1}, {"skip_bad": True}, {"splits": (0.7, 0.2, 0.1)}]
    for options in tried:
        assert identical(from_path(path, cache=kept, **options), from_path(path, **options))
    assert len(entries(kept)) == len(tried)
    others = [FILES.set_column(1, "label", pa.array(CLASSES[::-1])), FILES[1:]]
    for number, rows in enumerate(others, len(tried) + 1):
        parquet.write_table(rows, path)
        assert identical(from_path(path, cache=kept), from_path(path))
        assert len(entries(kept)) == number
    for images in (GRAY, GRAY ^ 1):
        write_npz(path, x=images)
        assert identical(from_path(path, cache=kept), from_path(path))
    assert len(entries(kept)) == number + 2
    save_splits(tmp_path / "one", train=PIXELS[:20], test=PIXELS[20:])
    save_splits(tmp_path / "other", test=PIXELS[:20], train=PIXELS[20:])
    for name in ("one", "other"):
        assert identical(from_path(tmp_path / name, cache=kept), from_path(tmp_path / name))
    assert len(entries(kept)) == number + 4


NAN = np.where(np.arange(40)[:, None, None] == 33, np.nan, GRAY / 255)
LATE: dict[str, tuple[Callable[[Path], object], str]] = {
    "NaN": (lambda path: write_npy(path, NAN), "training images: image 33 holds nan"),
    "another size": (
        lambda path: save(path, lists([*GRAY[:33], *GRAY[33:, 1:]])),
        "row 33 of x has lists of 5 pixels, and row 0 of 6",
    ),
    "a null": (lambda path: parquet.write_table(lists([*GRAY[:33], None]), path), "row 33 of x is null"),
    "one label too few": (lambda path: write_npz(path, x=GRAY, y=CLASSES[1:]), "labels have shape (39,)"),
    "test images of another size": (
        lambda path: save_splits(path, train=lists(GRAY), test=lists(GRAY[:, 1:])),
        "test images are (5, 5), training images (6, 5)",
    ),
    "binarized": (lambda path: write_npy(path, GRAY // 128), "no training image has a pixel above 1"),
}


@pytest.mark.parametrize("name", LATE)
def test_error_found_midway_leaves_no_entry(name: str, tmp_path: Path) -> None:
    write, says = LATE[name]
    write(tmp_path / "data")
    assert says in error_with_and_without_cache(from_path, tmp_path / "data", tmp_path / "cache")


@pytest.mark.parametrize("name", KEPT)
def test_failed_write_leaves_no_entry_and_loading_succeeds(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: object) -> None:
        raise OSError("No space left on device")

    FORMATS[name](tmp_path / "data")
    monkeypatch.setattr(cache.os, "fsync", full)  # fails after the images have been written
    found = from_path(tmp_path / "data", cache=tmp_path / "cache")
    assert caplog.messages == ["The cache is not written (No space left on device); images are decoded into memory."]
    assert entries(tmp_path / "cache") == []
    assert identical(found, from_path(tmp_path / "data"))


def test_images_larger_than_the_free_disk_are_not_cached(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_npz(tmp_path / "data", x=GRAY)
    monkeypatch.setattr(array_files.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 2 * GRAY.size - 1}))
    found = from_path(tmp_path / "data", cache=tmp_path / "cache")
    assert "No space left on device" in caplog.text
    assert identical(found, from_path(tmp_path / "data"))


@pytest.mark.parametrize("write", [save, lambda path, rows: parquet.write_table(rows, path)], ids=["saved", "Parquet"])
def test_warnings_are_repeated(
    write: Callable[..., None], tmp_path: Path, caplog: pytest.LogCaptureFixture, no_decoder: Callable[[], None]
) -> None:
    files: list[Any] = image_files(GRAY).to_pylist()
    files[17]["bytes"], files[23] = b"not an image", None
    write(tmp_path / "data", pa.table({"image": pa.array(files, FILES["image"].type), "label": CLASSES, "id": CLASSES}))
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        expected = from_path(tmp_path / "data", skip_bad=True)
        said = caplog.messages.copy()
        assert len(said) == 3
        for _ in range(2):
            caplog.clear()
            assert identical(from_path(tmp_path / "data", skip_bad=True, cache=tmp_path / "cache"), expected)
            assert caplog.messages == said
            no_decoder()


def test_numbers_and_runs_without_download_are_not_cached(tmp_path: Path) -> None:
    numbers = RNG.normal(size=(40, 2))
    write_npy(tmp_path / "array", numbers)
    parquet.write_table(pa.table({"a": numbers[:, 0], "b": numbers[:, 1]}), tmp_path / "table")
    for name in ("array", "table"):
        assert identical(from_path(tmp_path / name, cache=tmp_path / "cache"), from_path(tmp_path / name))
    write_npz(tmp_path / "images", x=GRAY)
    load(str(tmp_path / "images"), tmp_path, download=False)
    assert not (tmp_path / "cache").exists()
