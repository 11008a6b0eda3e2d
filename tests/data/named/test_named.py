"""Data sets by name: files written here in each format are read back as the images and labels put into them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers.calls import one_line
from helpers.named_files import HELD, TRAIN, WRITERS, check, few_validation_images

from pyro_vae import data
from pyro_vae.data import DataError

# Images of each published set: training (including validation if taken from it), validation, test.
SIZES: dict[str, Sequence[int]] = {
    "cifar10": (45_000, 5_000, 10_000),
    "svhn": (68_257, 5_000, 26_032),
    "emnist": (94_000, 18_800, 18_800),
    "omniglot": (23_000, 1_345, 8_070),
    "static-mnist": (50_000, 10_000, 10_000),
    "caltech-silhouettes": (4_100, 2_264, 2_307),
}


@pytest.fixture(autouse=True)
def _few_validation_images(monkeypatch: pytest.MonkeyPatch) -> None:
    few_validation_images(monkeypatch)


@pytest.mark.parametrize("name", WRITERS)
def test_written_files_are_read_back(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Upright, in file order, with one warning that these are not the published images."""
    WRITERS[name](tmp_path)
    check(data.load(name, tmp_path, download=False), *HELD[name])
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("pyro_vae", logging.WARNING)
    own = name in ("static-mnist", "caltech-silhouettes")
    sizes = "15 training, 5 validation and 4 test images." if own else "20 training and 4 test images."
    assert record.getMessage().endswith(f"it holds {sizes}")
    assert str(tmp_path) in record.getMessage()


@pytest.mark.parametrize("name", WRITERS)
def test_modules_state_the_published_numbers_of_images(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are passed to the check that warns of other sizes."""
    told: list[Sequence[int]] = []

    def compare(where: Path, name: str, found: dict[str, int], published: Sequence[int]) -> None:
        told.append(published)

    monkeypatch.setattr("pyro_vae.data.named.files.warn_of_other_sizes", compare)
    WRITERS[name](tmp_path)
    data.load(name, tmp_path)
    train, valid, test = SIZES[name]
    assert list(told[0]) in ([train, valid, test], [train + valid, test])


@pytest.mark.parametrize("name", WRITERS)
def test_each_missing_file_is_named(name: str, tmp_path: Path) -> None:
    folder = WRITERS[name](tmp_path)
    for path in list(folder.iterdir()):
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(DataError) as caught:
            data.load(name, tmp_path, download=False)
        assert one_line(caught.value).startswith(f"{folder} has no {path.name} (")
        assert "set --data-root to the folder of your data sets" in one_line(caught.value)
        path.write_bytes(content)
    data.load(name, tmp_path)


def test_pickled_cifar10_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(DataError, match=r"cifar-10-binary\.tar\.gz .*pickles, which are never read"):
        data.load("cifar10", tmp_path)


@pytest.mark.parametrize("name", WRITERS)
def test_truncated_file_is_rejected(name: str, tmp_path: Path) -> None:
    folder = WRITERS[name](tmp_path)
    for path in list(folder.iterdir()):
        content = path.read_bytes()
        for length in (0, 10, len(content) // 2 + 1, len(content) - 2):  # never between two records
            path.write_bytes(content[:length])
            with pytest.raises(DataError) as caught:
                data.load(name, tmp_path)
            assert one_line(caught.value).startswith(str(path)), (path, length)
            assert "--data-root" in one_line(caught.value)
        path.write_bytes(content)


@pytest.mark.parametrize("name", ["cifar10", "svhn", "emnist", "omniglot"])
def test_validation_must_leave_training_images(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_validation_images(monkeypatch, TRAIN)
    WRITERS[name](tmp_path)
    with pytest.raises(DataError, match=f"holds {TRAIN} .*images, but at least {TRAIN + 1} are required") as caught:
        data.load(name, tmp_path)
    one_line(caught.value)


# Downloads


@pytest.mark.parametrize(("name", "dataset"), [("svhn", "SVHN"), ("emnist", "EMNIST")])
def test_files_downloaded_by_torchvision_are_read(
    name: str, dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fetch(root: Path, split: str, train: bool = True, download: bool = False) -> None:
        asked.append((root, split, train, download))
        WRITERS[name](tmp_path)

    monkeypatch.setattr(f"torchvision.datasets.{dataset}", fetch)
    check(data.load(name, tmp_path), *HELD[name])
    expected = [(tmp_path / "svhn", "train")] if name == "svhn" else [(tmp_path, "balanced")] * 2
    assert [call[:2] for call in asked] == expected
    assert all(download for *_, download in asked)
    check(data.load(name, tmp_path), *HELD[name])
    assert len(asked) == len(expected)  # existing files are not downloaded again


@pytest.mark.parametrize("dataset", ["SVHN", "EMNIST"])
def test_failed_download_is_reported_in_one_line(dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError("no\nnetwork")

    monkeypatch.setattr(f"torchvision.datasets.{dataset}", refuse)
    with pytest.raises(DataError, match=r"downloading failed \(OSError: no network\).*--data-root") as caught:
        data.load(dataset.lower(), tmp_path)
    one_line(caught.value)
