"""Bad images in tables, and image options: as in folders, with messages that name the row instead of the file."""

from __future__ import annotations

import shutil
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers.arrow_tables import FILES, image_files, png, save
from helpers.calls import one_line
from pyarrow import parquet

from pyro_vae.data import DataError, from_folder, from_path

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (40, 6, 5), dtype=np.uint8)
CLASSES = np.arange(40) % 3
PIXELS = pa.array(GRAY.tolist(), pa.list_(pa.list_(pa.uint8())))


def write(path: Path, images: Any, **columns: Any) -> None:
    parquet.write_table(pa.table({"image": images, **columns}), path)


def without(row: int | None, **instead: object) -> pa.Array:
    """Return the images with fields replaced in one row, or in every row if None."""
    files: list[Any] = image_files(GRAY).to_pylist()
    for n in range(40) if row is None else [row]:
        files[n] = {**files[n], **instead} if instead else None
    return pa.array(files, FILES)


def bomb(width: int, height: int) -> bytes:
    """Return a PNG whose header claims the given size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(13, header), (0, b"IDAT")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", length) + chunk + struct.pack(">I", zlib.crc32(chunk)) for length, chunk in chunks
    )


@pytest.mark.parametrize(
    ("instead", "says"),
    [
        ({}, "is null; leave out such rows"),
        ({"bytes": None}, "holds a path, which is never opened, but no bytes"),
        ({"bytes": None, "path": None}, "is null"),
        ({"bytes": b""}, "cannot be read as an image (unknown format)"),
        ({"bytes": png(GRAY[0])[:-40]}, "cannot be read as an image ("),
        ({"bytes": bomb(9_400, 9_500)}, "cannot be read as an image ("),
        ({"bytes": bomb(11_000, 10_000)}, "has 11000 x 10000 pixels; make it smaller"),
        ({"bytes": bomb(40_000, 40_000)}, "cannot be read as an image (Image size"),
        (
            {"bytes": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 6\n"},
            "cannot be read as an image (unknown format)",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bad_image_is_named_or_skipped(instead: dict[str, Any], says: str, tmp_path: Path) -> None:
    """With no fields the row is null. A file that a row names exists, but is never opened."""
    (tmp_path / "17.png").write_bytes(png(GRAY[17]))
    named = {"path": str(tmp_path / "17.png")} if instead else {}
    write(tmp_path / "data.parquet", without(17, **{**named, **instead}), label=CLASSES)
    with pytest.raises(DataError) as caught:
        from_path(tmp_path / "data.parquet")
    assert f"data.parquet: row 17 of image {says}" in one_line(caught.value)
    found = from_path(tmp_path / "data.parquet", skip_bad=True)
    kept = {GRAY[n].tobytes(): CLASSES[n] for n in range(40) if n != 17}
    assert found.labels is not None
    for split in ("train", "valid", "test"):
        for image, (label,) in zip(getattr(found, split), getattr(found.labels, split).tolist(), strict=True):
            assert kept.pop(image.numpy().tobytes()) == label
    assert not kept


def test_table_of_only_bad_images_is_rejected(tmp_path: Path) -> None:
    write(tmp_path / "data", without(None, bytes=None))
    with pytest.raises(DataError, match=r"None of the 40 image files can be used; the first: .*row 0 of image"):
        from_path(tmp_path / "data", skip_bad=True)


def test_images_of_several_sizes_need_a_size(tmp_path: Path) -> None:
    write(tmp_path / "data", without(17, bytes=png(GRAY[17, 1:])))
    with pytest.raises(DataError, match=r"row 17 of image is 5 x 5 pixels and row 0 of image 6 x 5; give a size"):
        from_path(tmp_path / "data")
    assert from_path(tmp_path / "data", size=5).pixel_shape == (5, 5)
    with pytest.raises(DataError, match="channels is 2; choose 1 or 3"):
        from_path(tmp_path / "data", channels=2)


@pytest.mark.parametrize("options", [{"size": 3}, {"channels": 1}, {"skip_bad": True}])
@pytest.mark.parametrize("column", [PIXELS, np.arange(40)], ids=["pixels", "numbers"])
def test_image_options_are_rejected_for_other_tables(column: Any, options: dict[str, Any], tmp_path: Path) -> None:
    save(tmp_path / "data", pa.table({"column": column}))
    with pytest.raises(DataError, match="data is read unchanged: leave out --image-size, --channels and --skip-bad"):
        from_path(tmp_path / "data", **options)


@pytest.mark.parametrize("kind", ["saved", "Parquet"])
def test_missing_pyarrow_is_reported_when_needed(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "saved":
        save(tmp_path / "data", pa.table({"image": image_files(GRAY)}))
    else:
        write(tmp_path / "data", image_files(GRAY))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"needs pyarrow: pip install 'pyro_vae\[data\]'"):
        from_path(tmp_path / "data")


def test_folder_of_images_needs_no_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    for n, image in enumerate(GRAY):
        (tmp_path / "data" / f"{n}.png").write_bytes(png(image))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert from_path(tmp_path / "data").pixel_shape == (6, 5)
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(DataError, match="is not a folder of images"):
        from_folder(tmp_path / "data")
