"""Run folders from somebody else: what their config.json says is read, and nothing outside the folder is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
from helpers.calls import command

from pyro_vae.config import Config
from pyro_vae.runs import RunFolder

pytestmark = pytest.mark.host

Refused = Callable[..., None]


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the folders into which downloads are attempted; none succeeds."""
    asked: list[Path] = []

    def note(*args: object, download_root: str, **kwargs: object) -> None:
        asked.append(Path(download_root))
        raise URLError("no network")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", note)
    return asked


@pytest.fixture
def stranger(tmp_path: Path) -> Callable[..., Path]:
    """Return what makes a run folder with settings of somebody else's, up to a checkpoint that is none."""

    def make(content: str | None = None, **changes: Any) -> Path:
        folder = RunFolder(tmp_path / "run")
        folder.create(Config(**changes).to_json())
        if content is not None:
            folder.config_path.write_text(content)
        (folder.checkpoints / "step-000000001.safetensors").write_bytes(b"no checkpoint")
        return folder.path

    return make


def outside(tmp_path: Path) -> list[str]:
    return sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if "run" not in p.parts)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "kmnist"])
def test_nothing_is_downloaded_into_a_folder_that_a_run_names(
    name: str, stranger: Callable[..., Path], tmp_path: Path, downloads: list[Path], refused: Refused
) -> None:
    elsewhere = tmp_path / "elsewhere"
    run = stranger(data=name, data_root=elsewhere)
    refused(command("evaluate", run), f"{elsewhere}", "has no train-images-idx3-ubyte", "--data-root")
    assert downloads == []
    assert outside(tmp_path) == []


def test_what_is_there_half_is_not_completed(
    stranger: Callable[..., Path], tmp_path: Path, downloads: list[Path], refused: Refused
) -> None:
    raw = tmp_path / "elsewhere" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte"):
        (raw / name).write_bytes(b"mine")
    before = outside(tmp_path)
    refused(command("evaluate", stranger(data="mnist", data_root=raw.parents[1])), f"{raw} has no t10k-labels-idx1")
    assert downloads == []
    assert outside(tmp_path) == before
    assert (raw / "t10k-images-idx3-ubyte").read_bytes() == b"mine"


def test_a_folder_that_the_user_names_may_be_downloaded_into(
    stranger: Callable[..., Path], tmp_path: Path, downloads: list[Path], refused: Refused
) -> None:
    run = stranger(data="mnist", data_root=tmp_path / "elsewhere")
    refused(command("evaluate", run, "--data-root", tmp_path / "here"), "downloading failed", "no network")
    assert set(downloads) == {tmp_path / "here" / "MNIST" / "raw"}
    assert not (tmp_path / "elsewhere").exists()


def test_embedded_digits_need_no_folder(
    stranger: Callable[..., Path], tmp_path: Path, downloads: list[Path], refused: Refused
) -> None:
    refused(command("evaluate", stranger(data_root=tmp_path / "elsewhere")), "No checkpoint can be loaded")
    assert downloads == []
    assert outside(tmp_path) == []


def test_no_program_that_a_run_names_is_run(stranger: Callable[..., Path], tmp_path: Path, refused: Refused) -> None:
    code = tmp_path / "code.py"
    code.write_text(f"from pathlib import Path\nPath({str(tmp_path / 'canary')!r}).touch()\n")
    refused(command("evaluate", stranger(program=f"{code}:factory")), "repeat that flag")
    assert outside(tmp_path) == ["code.py"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
        ('{"seed": ' + "9" * 10_000 + "}", "it is not JSON"),
        ("{}", "unknown or missing"),
        (json.dumps({**Config().to_json(), "program": "\x1b[2J\n.py:f"}), r"program is '\x1b[2J\n.py:f'"),
        (json.dumps({**Config().to_json(), "data_root": "/\0"}), r"data_root is '/\x00'"),
        (json.dumps({**Config().to_json(), "data": "mnist", "data_root": "x" * 4000}), "--data-root"),
    ],
)
def test_a_configuration_from_anybody_is_refused_in_one_line(
    content: str, says: str, stranger: Callable[..., Path], downloads: list[Path], refused: Refused
) -> None:
    refused(command("evaluate", stranger(content)), says)
    assert downloads == []


def test_names_that_no_folder_has(tmp_path: Path, refused: Refused) -> None:
    refused(command("evaluate", tmp_path / ("x" * 300)), "no config.json")


@pytest.mark.parametrize("name", ["evaluation", "checkpoints"])
def test_nothing_is_written_through_a_link_of_theirs(
    name: str, stranger: Callable[..., Path], tmp_path: Path, refused: Refused
) -> None:
    run = stranger()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if (run / name).exists():
        (run / name).rename(tmp_path / "away")
    (run / name).symlink_to(elsewhere)
    refused(command("evaluate", run), f"{run / name} is a symbolic link")
    assert list(elsewhere.iterdir()) == []
