"""Folders of image files: the same pixels from every format, and every bad file rejected by name."""

from __future__ import annotations

import logging
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_vae.data import DataError, Images, from_arrays, from_folder

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (40, 6, 5), dtype=np.uint8)
COLOR = RNG.integers(0, 256, (40, 6, 5, 3), dtype=np.uint8)


def write(folder: Path, pixels: np.ndarray, suffix: str = ".png", mode: str | None = None, **options: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(pixels):
        picture = Image.fromarray(image)
        (picture.convert(mode) if mode else picture).save(folder / f"{number:03}{suffix}", **options)


def same(a: Images, b: Images) -> bool:
    """Return whether each split holds the same images, in any order."""
    return all(rows(getattr(a, split)) == rows(getattr(b, split)) for split in ("train", "valid", "test"))


def rows(images: torch.Tensor) -> list[bytes]:
    return sorted(image.numpy().tobytes() for image in images)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".webp", ".PNG"])
def test_lossless_formats_give_the_same_pixels(suffix: str, tmp_path: Path) -> None:
    options = {"lossless": True} if suffix == ".webp" else {}
    write(tmp_path / "gray", GRAY, suffix, **options)
    write(tmp_path / "color", COLOR, suffix, **options)
    channels = 1 if suffix == ".webp" else None  # WebP has no grayscale mode
    assert same(from_folder(tmp_path / "gray", channels=channels), from_arrays(GRAY))
    assert same(from_folder(tmp_path / "color"), from_arrays(np.moveaxis(COLOR, -1, 1)))


def test_jpegs_are_close(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(16), np.arange(16))[None].repeat(80, 0) * 5 + np.arange(80)[:, None, None]
    write(tmp_path, smooth.astype(np.uint8), ".jpg", quality=95)
    found = from_folder(tmp_path)
    pixels = torch.cat([found.train, found.valid, found.test]).double()
    assert pixels.mean() == pytest.approx(smooth.mean(), abs=0.5)


@pytest.mark.parametrize("mode", ["P", "RGBA", "CMYK"])
def test_every_color_mode_is_read_as_colors(mode: str, tmp_path: Path) -> None:
    few = np.zeros((40, 6, 5, 3), np.uint8)
    few[..., 0] = 255 * (GRAY > 128)  # only red and black, which fit a palette
    write(tmp_path, few, ".tif" if mode == "CMYK" else ".png", mode)
    assert same(from_folder(tmp_path), from_arrays(np.moveaxis(few, -1, 1)))


def test_sixteen_bits_are_rounded_to_eight(tmp_path: Path) -> None:
    write(tmp_path, GRAY.astype(np.uint16) * 257)
    assert same(from_folder(tmp_path), from_arrays(GRAY))


def test_one_bit_images_are_black_and_white(tmp_path: Path) -> None:
    write(tmp_path, GRAY > 128)
    assert same(from_folder(tmp_path), from_arrays(255 * (GRAY > 128).astype(np.uint8)))


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    tmp_path.mkdir(exist_ok=True)
    for number, image in enumerate(GRAY):
        picture = Image.fromarray(np.rot90(image))
        exif = picture.getexif()
        exif[0x0112] = 6  # rotate by 270 degrees for an upright view
        picture.save(tmp_path / f"{number:03}.png", exif=exif)
    assert same(from_folder(tmp_path), from_arrays(GRAY))


def test_gray_and_color_images_are_converted_to_one_mode(tmp_path: Path) -> None:
    write(tmp_path / "a", GRAY)
    write(tmp_path / "b", COLOR)
    colors = from_folder(tmp_path)
    assert colors.pixel_shape == (3, 6, 5)
    gray = from_folder(tmp_path, channels=1)
    luma = (COLOR @ np.array([0.299, 0.587, 0.114])).round().astype(np.uint8)
    assert same(gray, from_arrays(np.concatenate([GRAY, luma])))


def test_resizing_keeps_the_center(tmp_path: Path) -> None:
    """Constant images stay constant, and the sides of wide images are cropped."""
    wide = np.zeros((50, 8, 24), np.uint8)
    wide[:, :, 8:16] = 200 + np.arange(50)[:, None, None]
    write(tmp_path, wide)
    found = from_folder(tmp_path, size=4)
    every = torch.cat([found.train, found.valid, found.test])
    assert every.shape[1:] == (4, 4)
    assert sorted(every[:, 1, 1].tolist()) == list(range(200, 250))


def test_first_images_are_a_sample_of_all_classes(tmp_path: Path) -> None:
    """The order is independent of file names. Probability that all 15 are of one class: below 1e-6."""
    write(tmp_path / "a", GRAY[:20])
    write(tmp_path / "b", GRAY[20:])
    first = {image.numpy().tobytes() for image in from_folder(tmp_path).train[:15]}
    assert 0 < sum(image.tobytes() in first for image in GRAY[:20]) < 15


def test_folders_are_classes(tmp_path: Path) -> None:
    write(tmp_path / "dog", GRAY[:20])
    write(tmp_path / "cat" / "black", GRAY[20:30])
    write(tmp_path / "cat" / "white", GRAY[30:])
    found = from_folder(tmp_path)
    assert same(found, from_arrays(np.concatenate([GRAY[20:], GRAY[:20]])))
    assert found.labels is not None
    codes = {image.tobytes(): 2 if i < 20 else int(i >= 30) for i, image in enumerate(GRAY)}
    for split in ("train", "valid", "test"):
        expected = [codes[image.numpy().tobytes()] for image in getattr(found, split)]
        assert found.labels.get("class", split).tolist() == expected


@pytest.mark.parametrize("valid", [True, False])
def test_folders_are_splits(valid: bool, tmp_path: Path) -> None:
    write(tmp_path / "train" / "a", GRAY[:25])
    write(tmp_path / "test" / "b", GRAY[35:])
    if valid:
        write(tmp_path / "valid" / "a", GRAY[25:35])
    found = from_folder(tmp_path)
    assert rows(found.test) == rows(torch.from_numpy(GRAY[35:]))
    assert found.labels is not None
    assert found.labels.test.tolist() == [[1]] * 5
    if valid:
        assert rows(found.valid) == rows(torch.from_numpy(GRAY[25:35]))
    else:
        assert same(found, from_arrays(GRAY[:25], GRAY[35:]))


def test_link_loops_and_other_files_are_ignored(tmp_path: Path) -> None:
    write(tmp_path / "a", GRAY)
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    (tmp_path / "a" / "._000.png").write_bytes(b"of another system")
    assert same(from_folder(tmp_path), from_arrays(GRAY))


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def damaged_jpeg(path: Path) -> None:
    smooth = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    Image.fromarray(smooth).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:-200])


def text(path: Path) -> None:
    path.write_text("not an image")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def animated(path: Path) -> None:
    frames = [Image.fromarray(image) for image in GRAY[:3]]
    frames[0].save(path, "GIF", save_all=True, append_images=frames[1:])


def transparent(path: Path) -> None:
    Image.fromarray(np.dstack([COLOR[0], GRAY[0]])).save(path)


def see_through_palette(path: Path) -> None:
    Image.fromarray(GRAY[0]).convert("P").save(path, transparency=int(GRAY[0, 0, 0]))


def real(path: Path) -> None:
    Image.fromarray(GRAY[0].astype(np.float32)).save(path, "TIFF")


def larger(path: Path) -> None:
    Image.fromarray(np.zeros((7, 5), np.uint8)).save(path)


def nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nothing"))


def a_socket(path: Path) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX) as each:
        each.bind(str(path))


BAD: dict[Callable[[Path], None], str] = {
    damaged: "cannot be read as an image",
    damaged_jpeg: "cannot be read as an image",
    text: "cannot be read as an image",
    empty: "cannot be read as an image",
    animated: "is animated; give its frames",
    transparent: "has transparent pixels; put it on a background",
    see_through_palette: "has transparent pixels",
    real: "has pixels of type F; give 8 or 16 bits",
    nowhere: "is not a file; remove it",
    a_socket: "is not a file; remove it",
}


@pytest.mark.parametrize(("spoil", "words"), BAD.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_bad_file_is_named_or_skipped(
    spoil: Callable[[Path], None],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)  # socket paths must be short
    folder = Path("f")
    write(folder, GRAY)
    spoil(folder / "017.png")
    with pytest.raises(DataError, match=rf"017.png {words}") as caught:
        from_folder(folder)
    assert "\n" not in str(caught.value)
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        found = from_folder(folder, skip_bad=True)
    assert same(found, from_arrays(np.delete(GRAY, 17, 0)))
    assert "017.png" in caplog.text


def test_class_without_images_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, part in zip(("cat", "dog"), np.split(GRAY, 2), strict=True):
        write(tmp_path / name, part)
    expected = from_folder(tmp_path)
    (tmp_path / "emu" / "young").mkdir(parents=True)
    (tmp_path / "emu" / "notes.txt").write_text("no emus yet")
    (tmp_path / ".hidden").mkdir()
    with pytest.raises(DataError, match=r"emu is a class without images; remove the folder, or put some there\.$"):
        from_folder(tmp_path)
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        assert same(from_folder(tmp_path, skip_bad=True), expected)
    assert "emu is a class without images" in caplog.text
    write(tmp_path, GRAY[:1])  # with an image next to them, folders are not classes
    assert from_folder(tmp_path).labels is None


def test_name_reports_how_the_images_were_split(tmp_path: Path) -> None:
    write(tmp_path / "alone", GRAY)
    write(tmp_path / "two" / "train", GRAY[10:])
    write(tmp_path / "two" / "test", GRAY[:10])
    shutil.copytree(tmp_path / "two", tmp_path / "three")
    (tmp_path / "three" / "valid").mkdir()
    (tmp_path / "three" / "train" / "000.png").rename(tmp_path / "three" / "valid" / "0.png")
    said = {"alone": "split by their content", "two": "validation data split off by their content"}
    for name, how in {**said, "three": "split as given"}.items():
        for cache in (None, tmp_path / "cache", tmp_path / "cache"):
            assert str(from_folder(tmp_path / name, cache=cache)).endswith(f"pixels, {how}")


def test_image_of_another_size_is_named(tmp_path: Path) -> None:
    write(tmp_path, GRAY)
    larger(tmp_path / "017.png")
    with pytest.raises(DataError, match=r"017.png is 7 x 5 pixels and 000.png 6 x 5; give a size for all"):
        from_folder(tmp_path)
    assert from_folder(tmp_path, size=3).pixel_shape == (3, 3)


def test_invalid_folder_of_images_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder of images"):
        from_folder(tmp_path / "nothing")
    with pytest.raises(DataError, match="holds no images"):
        from_folder(tmp_path)
    write(tmp_path, GRAY[:1])
    with pytest.raises(DataError, match="of 1 items, none falls into the split of fraction"):
        from_folder(tmp_path)
    with pytest.raises(DataError, match="channels is 2; choose 1 or 3"):
        from_folder(tmp_path, channels=2)
    text(tmp_path / "000.png")
    with pytest.raises(DataError, match="None of the 1 image files can be used"):
        from_folder(tmp_path, skip_bad=True)
