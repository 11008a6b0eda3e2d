"""The cache of decoded images: equal to decoding again, never mixed up between files, and never a reason to fail."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_vae.data import DataError, Images, from_folder, load
from pyro_vae.data.formats import decoding
from pyro_vae.data.formats.cache import Entry

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (40, 6, 5), dtype=np.uint8)
COLOR = RNG.integers(0, 256, (40, 6, 5, 3), dtype=np.uint8)


def write(folder: Path, pixels: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{number:03}.png")


def identical(a: Images, b: Images) -> bool:
    """Return whether all pixels, labels and attributes are bit-identical, in the same order."""
    pixels = [torch.equal(getattr(a, split), getattr(b, split)) for split in ("train", "valid", "test")]
    if a.labels is None or b.labels is None:
        return a.name == b.name and all(pixels) and a.labels is b.labels
    labels = [torch.equal(getattr(a.labels, split), getattr(b.labels, split)) for split in ("train", "valid", "test")]
    return a.name == b.name and all(pixels + labels) and a.labels.names == b.labels.names


def entries(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of images; color files come after gray ones, so that the shape changes while they are stored."""
    write(tmp_path / "images" / "a", GRAY)
    write(tmp_path / "images" / "b", COLOR)
    return tmp_path / "images"


@pytest.fixture
def no_decoder(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function after which any decoding fails."""

    def refuse(path: Path, size: int | None) -> np.ndarray:
        raise AssertionError(f"{path} is decoded")

    return lambda: monkeypatch.setattr(decoding, "read_image", refuse)


@pytest.mark.parametrize("options", [{}, {"channels": 1}, {"channels": 3, "size": 4}, {"splits": (0.5, 0.3, 0.2)}])
def test_cached_images_equal_decoded_ones(
    options: dict[str, object], folder: Path, tmp_path: Path, no_decoder: Callable[[], None]
) -> None:
    expected = from_folder(folder, **options)  # type: ignore[arg-type]
    assert identical(from_folder(folder, cache=tmp_path / "cache", **options), expected)  # type: ignore[arg-type]
    no_decoder()
    found = from_folder(folder, cache=tmp_path / "cache", **options)  # type: ignore[arg-type]
    assert identical(found, expected)
    assert len(entries(tmp_path / "cache")) == 1


@pytest.mark.parametrize("valid", [True, False])
def test_folders_of_splits_are_cached(valid: bool, tmp_path: Path, no_decoder: Callable[[], None]) -> None:
    write(tmp_path / "own" / "train", GRAY[:25])
    write(tmp_path / "own" / "test", GRAY[35:])
    if valid:
        write(tmp_path / "own" / "valid", GRAY[25:35])
    expected = from_folder(tmp_path / "own")
    assert identical(from_folder(tmp_path / "own", cache=tmp_path / "cache"), expected)
    no_decoder()
    assert identical(from_folder(tmp_path / "own", cache=tmp_path / "cache"), expected)


def other_bytes(folder: Path) -> None:
    Image.fromarray(GRAY[1]).save(folder / "a" / "000.png")


def other_encoding(folder: Path) -> None:
    Image.fromarray(GRAY[0]).save(folder / "a" / "000.png", compress_level=0)


def other_name(folder: Path) -> None:
    (folder / "a" / "000.png").rename(folder / "a" / "zzz.png")


def other_class(folder: Path) -> None:
    (folder / "a").rename(folder / "c")


def another_file(folder: Path) -> None:
    shutil.copy(folder / "a" / "000.png", folder / "a" / "more.png")


@pytest.mark.parametrize("change", [other_bytes, other_encoding, other_name, other_class, another_file])
def test_changed_files_get_a_new_entry(change: Callable[[Path], None], folder: Path, tmp_path: Path) -> None:
    from_folder(folder, cache=tmp_path / "cache")
    change(folder)
    assert identical(from_folder(folder, cache=tmp_path / "cache"), from_folder(folder))
    assert len(entries(tmp_path / "cache")) == 2


def test_entries_depend_on_options_but_not_on_times_or_paths(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    options = [{}, {"size": 4}, {"size": 5}, {"channels": 1}, {"channels": 3}, {"skip_bad": True}]
    for each in [*options, {"splits": (0.7, 0.2, 0.1)}]:
        from_folder(folder, cache=cache, **each)  # type: ignore[arg-type]
    before = entries(cache)
    assert len(before) == len(options) + 1
    for path in folder.rglob("*.png"):
        os.utime(path, (1, 1))
    folder.rename(tmp_path / "moved")
    (tmp_path / "moved" / "notes.txt").write_text("not an image")
    assert from_folder(tmp_path / "moved", cache=cache).name == "moved"
    assert entries(cache) == before


def truncated(entry: Path) -> None:
    os.truncate(entry / "images.npy", 1000)


def longer(entry: Path) -> None:
    with (entry / "images.npy").open("ab") as file:
        file.write(b"\0")


def a_pixel(entry: Path) -> None:
    with (entry / "images.npy").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))


def pickled(entry: Path) -> None:
    np.save(entry / "images.npy", np.array([None] * 80), allow_pickle=True)


def other_type(entry: Path) -> None:
    np.save(entry / "images.npy", np.zeros((80, 3, 6, 5), np.int8))


def a_label(entry: Path) -> None:
    about = json.loads((entry / "entry.json").read_text())
    about["labels"][3] ^= 1
    (entry / "entry.json").write_text(json.dumps(about))


def no_json(entry: Path) -> None:
    (entry / "entry.json").write_text('{"key": ')


def other_json(entry: Path) -> None:
    (entry / "entry.json").write_text("[1, 2]")


def half(entry: Path) -> None:
    (entry / "entry.json").unlink()


def foreign(entry: Path) -> None:
    """Replace the entry by the valid entry of other images."""
    write(entry.parents[1] / "other", GRAY)
    from_folder(entry.parents[1] / "other", cache=entry.parent / "in")
    shutil.rmtree(entry)
    next((entry.parent / "in").iterdir()).rename(entry)
    shutil.rmtree(entry.parent / "in")


DAMAGE = [truncated, longer, a_pixel, pickled, other_type, a_label, no_json, other_json, half, foreign]


@pytest.mark.parametrize("spoil", DAMAGE)
def test_damaged_entry_is_decoded_again(
    spoil: Callable[[Path], None],
    folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    no_decoder: Callable[[], None],
) -> None:
    cache = tmp_path / "cache"
    expected = from_folder(folder, cache=cache)
    expected = expected.map(torch.clone)  # so that damage cannot reach it
    (name,) = entries(cache)
    spoil(cache / name)
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        assert identical(from_folder(folder, cache=cache), expected)
        assert [each.getMessage() for each in caplog.records if "is damaged" in each.getMessage()] == caplog.messages
        assert len(caplog.messages) == 1
        no_decoder()
        assert identical(from_folder(folder, cache=cache), expected)
        assert len(caplog.messages) == 1
    assert entries(cache) == [name]


def full(self: decoding.InFile, image: np.ndarray) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_full_disk_leaves_no_entry_and_loading_succeeds(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding.InFile, "append", full)
    assert identical(from_folder(folder, cache=tmp_path / "cache"), from_folder(folder))
    (message,) = caplog.messages
    assert "No space left on device" in message
    assert "\n" not in message
    assert entries(tmp_path / "cache") == []


def test_unwritable_cache_does_not_stop_loading(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    assert identical(from_folder(folder, cache=tmp_path / "file" / "cache"), from_folder(folder))
    assert len(caplog.messages) == 1
    if os.geteuid() == 0:  # root may write to every folder
        return
    (tmp_path / "closed").mkdir(mode=0o555)
    assert identical(from_folder(folder, cache=tmp_path / "closed"), from_folder(folder))
    assert len(caplog.messages) == 2


def test_files_changed_during_decoding_are_not_cached(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = decoding.read_image

    def changing(path: Path, size: int | None) -> np.ndarray:
        if path == folder / "b" / "039.png":
            other_bytes(folder)
        return read(path, size)

    monkeypatch.setattr(decoding, "read_image", changing)
    assert identical(from_folder(folder, cache=tmp_path / "cache"), from_folder(folder))
    assert "have changed while they were decoded" in caplog.text
    assert entries(tmp_path / "cache") == []


def test_concurrent_readers_leave_one_valid_entry(folder: Path, tmp_path: Path, no_decoder: Callable[[], None]) -> None:
    cache, expected, found = tmp_path / "cache", from_folder(folder), []
    start = threading.Barrier(3)

    def run() -> None:
        start.wait()
        found.append(from_folder(folder, cache=cache))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(found) == 3
    assert all(identical(each, expected) for each in found)
    assert len(entries(cache)) == 1
    no_decoder()
    assert identical(from_folder(folder, cache=cache), expected)


def test_warnings_about_skipped_files_are_repeated(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, no_decoder: Callable[[], None]
) -> None:
    (folder / "a" / "000.png").write_text("not an image")
    (folder / "b" / "017.png").unlink()
    (folder / "b" / "017.png").symlink_to(folder / "nothing")
    with pytest.raises(DataError, match=r"000.png cannot be read"):
        from_folder(folder, cache=tmp_path / "cache")
    assert entries(tmp_path / "cache") == []
    expected = from_folder(folder, skip_bad=True)
    warnings = list(caplog.messages)
    assert len(warnings) == 2
    caplog.clear()
    from_folder(folder, skip_bad=True, cache=tmp_path / "cache")
    assert caplog.messages == warnings
    caplog.clear()
    no_decoder()
    assert identical(from_folder(folder, skip_bad=True, cache=tmp_path / "cache"), expected)
    assert caplog.messages == warnings


def test_without_download_permission_nothing_is_written(
    folder: Path, tmp_path: Path, no_decoder: Callable[[], None]
) -> None:
    root = tmp_path / "root"
    expected = load(str(folder), root, download=False)
    assert not root.exists()
    (root / "cache").mkdir(parents=True)
    load(str(folder), root, download=False)
    assert entries(root / "cache") == []
    assert identical(load(str(folder), root), expected)
    (name,) = entries(root / "cache")
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in (root / "cache").rglob("*")}
    kept = root / "cache" / name / "images.npy"
    no_decoder()
    assert identical(load(str(folder), root, download=False), expected)
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in (root / "cache").rglob("*")} == before
    os.truncate(kept, 1000)
    with pytest.raises(AssertionError, match="is decoded"):
        load(str(folder), root, download=False)
    assert kept.stat().st_size == 1000


def test_modifying_images_does_not_change_the_entry(folder: Path, tmp_path: Path) -> None:
    expected = from_folder(folder, cache=tmp_path / "cache").map(torch.clone)
    from_folder(folder, cache=tmp_path / "cache").train.zero_()
    assert identical(from_folder(folder, cache=tmp_path / "cache"), expected)


def test_unfinished_entries_are_removed_once_old(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for name, age in (("old", 2 * 86_400), ("new", 60)):
        left = cache / f".unfinished-{name}"
        left.mkdir(parents=True)
        (left / "decoded").write_bytes(b"half")
        for path in (left / "decoded", left):
            os.utime(path, (time.time() - age,) * 2)
    from_folder(folder, cache=cache)
    assert entries(cache)[0] == ".unfinished-new"
    assert len(entries(cache)) == 2


def test_exception_leaves_no_partial_entry(tmp_path: Path) -> None:
    def interrupted() -> None:
        with Entry(tmp_path / "cache", "key").writing() as temporary:
            (temporary / "images.npy").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert entries(tmp_path / "cache") == []


def test_results_are_in_order_and_boundedly_ahead() -> None:
    """50 items, at most 7 ahead, whether the producer or the consumer is slower."""
    asked, started, lock = 0, 0, threading.Lock()
    far: list[int] = []

    def compute(item: int) -> int:
        nonlocal started
        with lock:
            started += 1
            far.append(started - asked)
        return item * item

    def taken(results: Iterator[int]) -> Iterator[int]:
        nonlocal asked
        for each in results:
            time.sleep(0.001)
            yield each
            asked += 1

    assert list(taken(decoding.in_order(compute, range(50), 7))) == [each**2 for each in range(50)]
    assert max(far) <= 7 + 1  # the one being consumed
