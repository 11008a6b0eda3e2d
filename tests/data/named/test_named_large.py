"""Data sets whose files are large: dSprites, read in pieces, and CelebA, decoded file by file."""

from __future__ import annotations

import itertools
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.calls import one_line
from PIL import Image
from torchvision import transforms

from pyro_vae import data
from pyro_vae.data import DataError
from pyro_vae.data.named import celeba64, dsprites

RNG = np.random.default_rng(0)
FACTORS = ("shape", "scale", "orientation", "x", "y")
GRID = np.array(
    list(itertools.product(range(1), range(3), range(2), range(2), range(2), range(2)))
)  # 48 from six factors
SPRITES = RNG.integers(0, 2, (len(GRID), 64, 64), dtype=np.uint8)
NAME = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dsprites, "_PIECE", 7)


def write_dsprites(root: Path, **changes: np.ndarray) -> Path:
    path = root / "dsprites" / NAME
    path.parent.mkdir(exist_ok=True)
    metadata = np.array({"title": "pickled"}, dtype=object)
    held = {"imgs": SPRITES, "latents_classes": GRID, "latents_values": GRID / 2, "metadata": metadata} | changes
    np.savez_compressed(path, **held)
    return path


def test_each_sprite_is_read_once_with_its_factors(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_dsprites(tmp_path)
    images = data.load("dsprites", tmp_path)
    assert images.labels is not None
    assert images.labels.names == FACTORS
    assert [len(images.train), len(images.valid), len(images.test)] == [40, 4, 4]
    held = {tuple(classes[1:]): 255 * sprite for classes, sprite in zip(GRID, SPRITES, strict=True)}
    for split in ("train", "valid", "test"):
        for classes, image in zip(getattr(images.labels, split).tolist(), getattr(images, split), strict=True):
            np.testing.assert_array_equal(image, held.pop(tuple(classes)))
    assert held == {}
    (record,) = caplog.records
    assert record.getMessage().endswith("is not dSprites: it holds 40 training, 4 validation and 4 test images.")


def test_split_of_dsprites_is_fixed(tmp_path: Path) -> None:
    """The first indices of the permutation. Published results on this split depend on them."""
    write_dsprites(tmp_path)
    images = data.load("dsprites", tmp_path)
    order = np.random.RandomState(20170602).permutation(48)
    assert order[:8].tolist() == [25, 12, 20, 37, 40, 42, 13, 17]
    assert torch.equal(images.train, torch.from_numpy(255 * SPRITES[order[:40]]))
    assert torch.equal(images.test, torch.from_numpy(255 * SPRITES[order[44:]]))


BAD = {
    "pixels of 2": ({"imgs": 2 * SPRITES}, "imgs holds 2, not 0 or 1"),
    "64-bit pixels": ({"imgs": SPRITES.astype(int)}, "imgs is int64 (48, 64, 64) and must be uint8 (48, 64, 64)"),
    "pixels in another order": ({"imgs": np.asfortranarray(SPRITES)}, "imgs is uint8 (48, 64, 64) in Fortran order"),
    "fewer images": ({"imgs": SPRITES[1:]}, "imgs is uint8 (47, 64, 64) and must be uint8 (48, 64, 64)"),
    "other sizes": ({"imgs": SPRITES[:, 1:]}, "imgs is uint8 (48, 63, 64)"),
    "pickled images": ({"imgs": np.full(48, None)}, "imgs holds pickled objects, which are never read"),
    "pickled factors": ({"latents_classes": np.full(48, None)}, "latents_classes holds pickled objects"),
    "five factors": ({"latents_classes": GRID[:, 1:]}, "latents_classes is int64 (48, 5), not integers (N, 6)"),
    "values": ({"latents_classes": GRID / 2}, "latents_classes is float64 (48, 6), not integers"),
    "a shape that is none": ({"latents_classes": GRID + np.eye(6, dtype=int)[1]}, "holds 3 as shape, not 0 to 2"),
    "a negative place": ({"latents_classes": GRID - np.eye(6, dtype=int)[5]}, "holds -1 as y, not 0 to 31"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_file_of_sprites_is_rejected(case: str, tmp_path: Path) -> None:
    changes, says = BAD[case]
    path = write_dsprites(tmp_path, **changes)
    with pytest.raises(DataError) as caught:
        data.load("dsprites", tmp_path)
    assert one_line(caught.value).startswith(str(path))
    assert says in one_line(caught.value)


def test_damaged_file_of_sprites_is_rejected(tmp_path: Path) -> None:
    path = write_dsprites(tmp_path)
    content = path.read_bytes()
    for length in (0, 100, len(content) // 2, len(content) - 3):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match="cannot be read") as caught:
            data.load("dsprites", tmp_path)
        assert one_line(caught.value).startswith(str(path))
    flipped = bytearray(content)
    flipped[2000] ^= 16  # within the image data
    path.write_bytes(flipped)
    with pytest.raises(DataError, match="cannot be read"):
        data.load("dsprites", tmp_path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("imgs.npy", b"")
    with pytest.raises(DataError, match="holds no latents_classes"):
        data.load("dsprites", tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=f"has no {NAME} .*--data-root"):
        data.load("dsprites", tmp_path)


# CelebA

PARTITION = [0, 2, 0, 1, 0, 2]  # of six image files


def write_celeba(root: Path) -> Path:
    folder = root / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    names = [f"{number:06}.jpg" for number in range(1, 7)]
    rows = [f"{name} {split}" for name, split in zip(names, PARTITION, strict=True)]
    (folder / "list_eval_partition.txt").write_text("\n".join(rows) + "\n")
    for name in names:
        coarse = Image.fromarray(RNG.integers(0, 256, (11, 9, 3), dtype=np.uint8))
        coarse.resize((178, 218)).save(folder / "img_align_celeba" / name)
    return folder


def test_faces_match_torchvision(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_celeba(tmp_path)
    crop = transforms.Compose([transforms.CenterCrop(148), transforms.Resize(64), transforms.PILToTensor()])
    images = data.load("celeba64", tmp_path)
    for number, split in enumerate(("train", "valid", "test")):
        places = [place for place, each in enumerate(PARTITION, 1) if each == number]
        expected = [crop(Image.open(folder / "img_align_celeba" / f"{place:06}.jpg")) for place in places]
        assert torch.equal(getattr(images, split), torch.stack(expected))
    (record,) = caplog.records
    assert record.getMessage().endswith("is not CelebA: it holds 3 training, 1 validation and 2 test images.")


def test_faces_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_celeba(tmp_path) / "img_align_celeba"
    fresh = data.load("celeba64", tmp_path, download=False)  # writes nothing
    assert not (tmp_path / "cache").exists()
    first = data.load("celeba64", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(celeba64, "read_all", None)
        second = data.load("celeba64", tmp_path)
    for split in ("train", "valid", "test"):
        assert torch.equal(getattr(first, split), getattr(fresh, split))
        assert torch.equal(getattr(second, split), getattr(fresh, split))
    assert second.name == fresh.name
    Image.new("RGB", (178, 218), (9, 9, 9)).save(folder / "000003.jpg")
    assert (data.load("celeba64", tmp_path).train[1] == 9).all()


def test_gray_face_has_three_equal_channels(tmp_path: Path) -> None:
    path = write_celeba(tmp_path) / "img_align_celeba" / "000003.jpg"
    Image.open(path).convert("L").save(path)
    face = data.load("celeba64", tmp_path).train[1]
    assert torch.equal(face, face[:1].expand(3, -1, -1))


def test_bad_face_is_named(tmp_path: Path) -> None:
    folder = write_celeba(tmp_path) / "img_align_celeba"
    path = folder / "000005.jpg"
    content = path.read_bytes()
    for bad, says in ((content[:700], "cannot be read"), (b"", "cannot be read"), (b"<html>", "cannot be read")):
        path.write_bytes(bad)
        with pytest.raises(DataError) as caught:
            data.load("celeba64", tmp_path)
        assert one_line(caught.value).startswith(f"{path} {says}")
    Image.new("RGB", (178, 217)).save(path)
    with pytest.raises(DataError, match=r"000005\.jpg is 178 x 217 pixels, not 178 x 218"):
        data.load("celeba64", tmp_path)
    path.unlink()
    with pytest.raises(DataError) as caught:
        data.load("celeba64", tmp_path)
    assert one_line(caught.value).startswith(f"{folder} has no {path.name} (")


@pytest.mark.parametrize("row", ["000003.jpg", "000003.jpg 3", "../000003.jpg 0", "000003.png 0", "", "000003.jpg 0 1"])
def test_bad_row_of_the_partition_is_named(row: str, tmp_path: Path) -> None:
    path = write_celeba(tmp_path) / "list_eval_partition.txt"
    rows = path.read_text().splitlines()
    path.write_text("\n".join([*rows[:2], row, *rows[3:]]))
    with pytest.raises(DataError, match=r"line 3 is not NAME\.jpg and 0, 1 or 2") as caught:
        data.load("celeba64", tmp_path)
    assert one_line(caught.value).startswith(str(path))
    path.write_text("\n".join([*rows, rows[0]]))
    with pytest.raises(DataError, match="names a file twice"):
        data.load("celeba64", tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"has no list_eval_partition\.txt .*--data-root"):
        data.load("celeba64", tmp_path)
