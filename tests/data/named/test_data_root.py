"""--data-root that is one level off, or not read: one line, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.calls import TINY, command
from helpers.named_files import WRITERS
from helpers.run_folders import tree

from pyro_vae import data
from pyro_vae.config import Config
from pyro_vae.errors import DataError, UserError

FOLDERS = {"omniglot": ("omniglot",), "svhn": ("svhn",), "mnist": ("MNIST", "raw")}
MNIST = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def write(name: str, root: Path) -> None:
    """Write the files of a data set below a root."""
    if name != "mnist":
        WRITERS[name](root)
        return
    for file in MNIST:
        (root / "MNIST" / "raw").mkdir(parents=True, exist_ok=True)
        (root / "MNIST" / "raw" / file).write_bytes(b"x")


@pytest.fixture(autouse=True)
def _no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every download fail after it has made its folder, as those of torchvision do."""

    def fail(*args: object, download_root: str | None = None, root: str | None = None, **kwargs: object) -> None:
        Path(str(download_root or root)).mkdir(parents=True, exist_ok=True)
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", fail)
    monkeypatch.setattr("torchvision.datasets.svhn.download_url", fail)


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("level", ["the data set", "raw", "the folder around"])
def test_root_one_level_off_is_named_and_nothing_is_written(name: str, level: str, tmp_path: Path) -> None:
    meant = tmp_path / "around" / "mine"
    meant.mkdir(parents=True)
    write(name, meant)
    parts = FOLDERS[name]
    given = {"the data set": meant / parts[0], "raw": meant.joinpath(*parts), "the folder around": meant.parent}[level]
    before = tree(tmp_path)
    with pytest.raises(DataError, match=f"use --data-root {meant}") as caught:
        data.load(name, given)
    assert f"the files are below {meant}" in str(caught.value)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["mnist", "svhn"])
def test_failed_download_leaves_no_folder(name: str, tmp_path: Path) -> None:
    """Neither in a folder of the user nor of its own; folders that were there before are kept."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    (tmp_path / "empty" / FOLDERS[name][0]).mkdir(parents=True)
    before = tree(tmp_path)
    for root in (tmp_path / "mine", tmp_path / "new" / "root", tmp_path / "empty"):
        with pytest.raises(DataError, match="downloading failed"):
            data.load(name, root)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["digits", "shapes"])
def test_root_that_is_not_read_is_refused(
    name: str, tiny_run: Path, tmp_path: Path, refused: Callable[..., None]
) -> None:
    pictures = tmp_path / "pictures"
    with pytest.raises(UserError, match=f"--data {pictures} uses your own"):
        Config(data=name, data_root=pictures).check_data_root()
    Config(data=name).check_data_root()
    Config(data="mnist", data_root=pictures).check_data_root()
    flags = ["--data", name, "--data-root", pictures]
    refused(command("fit", *TINY, *flags, "--out", tmp_path / "run"), "is not read", "needs no files")
    priors = ["--priors", "standard", "laplace", "--out", tmp_path / "run"]
    refused(command("compare", *priors, *TINY, *flags), "is not read")
    if name == "digits":
        refused(command("evaluate", tiny_run, "--data-root", pictures), "is not read")
        refused(command("sample", tiny_run, "--data-root", pictures), "is not read")
    assert not (tmp_path / "run").exists()
