"""Files of arrays: the saved arrays are read, without executing code or exhausting memory."""

from __future__ import annotations

import io
import re
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.own_data import error_with_and_without_cache

from pyro_vae.data import DataError, Images, from_arrays, from_file

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (60, 6, 5), dtype=np.uint8)
COLOR = RNG.integers(0, 256, (60, 6, 5, 3), dtype=np.uint8)
CLASSES = np.arange(60) % 4


def same(a: Images, b: Images) -> bool:
    pixels = all(torch.equal(getattr(a, split), getattr(b, split)) for split in ("train", "valid", "test"))
    if a.labels is None or b.labels is None:
        return pixels and a.labels is b.labels
    return pixels and all(torch.equal(getattr(a.labels, each), getattr(b.labels, each)) for each in ("train", "test"))


@pytest.mark.parametrize("array", [GRAY, GRAY / 255, np.asfortranarray(GRAY), GRAY.astype(">f8") / 255], ids=str)
def test_array_round_trips_through_a_file(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", array)
    (tmp_path / "images.npy").rename(tmp_path / "images.data")  # the format is recognized by content
    assert same(from_file(tmp_path / "images.data"), from_arrays(GRAY))


def test_colors_may_be_the_last_dimension(tmp_path: Path) -> None:
    first = np.moveaxis(COLOR, -1, 1)
    for name, array in (("last", COLOR), ("first", first)):
        np.save(tmp_path / f"{name}.npy", array)
        assert same(from_file(tmp_path / f"{name}.npy"), from_arrays(first))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_archive_holds_images_and_labels(save: object, tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    for named in (
        {"x": GRAY, "y": CLASSES},
        {"images": GRAY, "labels": CLASSES[:, None]},
        {"labels": CLASSES, "x": GRAY},
    ):
        save(path, **named)  # type: ignore[operator]
        assert same(from_file(path), from_arrays(GRAY, labels=CLASSES))
    save(path, GRAY)  # type: ignore[operator]
    assert same(from_file(path), from_arrays(GRAY))
    save(path, x_train=COLOR[:40], x_test=COLOR[40:], y_train=CLASSES[:40], y_test=CLASSES[40:])  # type: ignore[operator]
    first = np.moveaxis(COLOR, -1, 1)
    assert same(from_file(path), from_arrays(first[:40], first[40:], labels=CLASSES[:40], test_labels=CLASSES[40:]))


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path("/nowhere/evil").write_text, ("code has run",))


def header_of(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": "|u1"})
    return file.getvalue()


def bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header_of((10**9, 10**6)) + bytes(10_000))


def bad_sum(path: Path) -> None:
    np.savez(path, x=GRAY.repeat(10, 0))
    content = bytearray(path.read_bytes())
    content[9000] ^= 255
    path.write_bytes(content)


def truncated_archive(path: Path) -> None:
    np.savez(path, x=GRAY)
    path.write_bytes(path.read_bytes()[:900])


def pickled(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.array([Evil()], dtype=object), allow_pickle=True)


def save(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, array)


BAD = {
    "pickled objects": (pickled, "holds pickled objects, which are never read"),
    "a pickled archive": (lambda path: np.savez(path, x=np.array([None] * 60)), "x holds pickled objects"),
    "a bomb": (bomb, "x takes 931322.6 GiB, but the memory is"),
    "a wrong sum": (bad_sum, "cannot be read"),
    "a truncated archive": (truncated_archive, "cannot be read"),
    "a truncated array": (lambda path: path.write_bytes(header_of((60, 6, 5)) + bytes(99)), "ends after 99 of 1,800"),
    "an array and more": (
        lambda path: path.write_bytes(header_of((60, 6, 5)) + bytes(1801)),
        "has trailing bytes after its array",
    ),
    "a truncated header": (lambda path: path.write_bytes(header_of((60, 6, 5))[:40]), "no header of an array"),
    "no header": (
        lambda path: path.write_bytes(b"\x93NUMPY" + struct.pack("<BBH", 1, 0, 9) + b"{nonsense"),
        "no header",
    ),
    "other names": (lambda path: np.savez(path, a=GRAY), "holds a.npy; name its images x"),
    "an empty archive": (lambda path: zipfile.ZipFile(path, "w").close(), "has an unknown format"),
    "an empty file": (lambda path: path.write_bytes(b""), "is empty; give a"),
    "one row of text": (lambda path: path.write_text("1,2,3"), "of 1 items, none falls into the split of fraction 0.1"),
    "one number": (lambda path: save(path, np.uint8(3)), r"images have shape \(\)"),
    "integers": (lambda path: save(path, GRAY.astype(int)), "pixels are torch.int64"),
    "complex numbers": (lambda path: save(path, GRAY.astype(complex)), "pixels are"),
    "NaN": (lambda path: save(path, np.where(GRAY > 250, np.nan, 0.5)), "holds nan"),
    "words": (lambda path: save(path, np.array(["a"] * 60)), "pixels are"),
    "labels of another length": (lambda path: np.savez(path, x=GRAY, y=CLASSES[1:]), r"labels have shape \(59,\)"),
    "labels of one half": (
        lambda path: np.savez(path, x_train=GRAY, x_test=GRAY, y_train=CLASSES),
        "only some of the splits",
    ),
    "test images of another size": (lambda path: np.savez(path, x_train=GRAY, x_test=GRAY[:, 1:]), r"\(5, 5\)"),
    "one image": (lambda path: save(path, GRAY[:1]), "of 1 items, none falls"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_rejected_with_one_line(name: str, tmp_path: Path) -> None:
    make, words = BAD[name]
    path = tmp_path / "data.npz"
    make(path)
    message = error_with_and_without_cache(from_file, path, tmp_path / "cache")
    assert re.search(words, message)
    assert "\n" not in message


def test_missing_file_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.npy cannot be read"):
        from_file(tmp_path / "nowhere.npy")


def test_images_survive_overwriting_of_their_file(tmp_path: Path) -> None:
    path = tmp_path / "images.npy"
    np.save(path, GRAY)
    found = from_file(path)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert same(found, from_arrays(GRAY))
