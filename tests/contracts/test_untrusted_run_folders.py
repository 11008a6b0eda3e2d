"""Untrusted run folders: config.json is validated, and nothing outside the folder is written or executed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
from helpers.calls import TINY, command, script

from pyro_vae.config import Config
from pyro_vae.errors import UserError
from pyro_vae.runs import RunFolder, checkpoint
from pyro_vae.text import printable

pytestmark = pytest.mark.host

Refused = Callable[..., None]


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the list of folders into which a download was attempted; every download fails."""
    asked: list[Path] = []

    def note(*args: object, download_root: str, **kwargs: object) -> None:
        asked.append(Path(download_root))
        raise URLError("no network")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", note)
    return asked


@pytest.fixture
def untrusted_run(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that creates a run folder with the given settings and an invalid checkpoint."""

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
def test_nothing_is_downloaded_into_a_folder_named_by_a_run(
    name: str, untrusted_run: Callable[..., Path], tmp_path: Path, downloads: list[Path], refused: Refused
) -> None:
    elsewhere = tmp_path / "elsewhere"
    run = untrusted_run(data=name, data_root=elsewhere)
    refused(command("evaluate", run), f"{elsewhere}", "has no train-images-idx3-ubyte", "--data-root")
    assert downloads == []
    assert outside(tmp_path) == []


def test_partial_data_set_is_not_completed(
    untrusted_run: Callable[..., Path], tmp_path: Path, downloads: list[Path], refused: Refused
) -> None:
    raw = tmp_path / "elsewhere" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte"):
        (raw / name).write_bytes(b"mine")
    before = outside(tmp_path)
    refused(
        command("evaluate", untrusted_run(data="mnist", data_root=raw.parents[1])), f"{raw} has no t10k-labels-idx1"
    )
    assert downloads == []
    assert outside(tmp_path) == before
    assert (raw / "t10k-images-idx3-ubyte").read_bytes() == b"mine"


def test_download_into_a_folder_named_by_the_user(
    untrusted_run: Callable[..., Path], tmp_path: Path, downloads: list[Path], refused: Refused
) -> None:
    run = untrusted_run(data="mnist", data_root=tmp_path / "elsewhere")
    refused(command("evaluate", run, "--data-root", tmp_path / "here"), "downloading failed", "no network")
    assert set(downloads) == {tmp_path / "here" / "MNIST" / "raw"}
    assert not (tmp_path / "elsewhere").exists()


def test_bundled_digits_need_no_folder(
    untrusted_run: Callable[..., Path], tmp_path: Path, downloads: list[Path], refused: Refused
) -> None:
    refused(command("evaluate", untrusted_run(data_root=tmp_path / "elsewhere")), "No checkpoint can be loaded")
    assert downloads == []
    assert outside(tmp_path) == []


def test_program_named_by_a_run_is_not_executed(
    untrusted_run: Callable[..., Path], tmp_path: Path, refused: Refused
) -> None:
    code = tmp_path / "code.py"
    code.write_text(f"from pathlib import Path\nPath({str(tmp_path / 'canary')!r}).touch()\n")
    refused(command("evaluate", untrusted_run(program=f"{code}:factory")), "repeat that flag")
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
def test_untrusted_configuration_is_rejected_with_one_line(
    content: str, says: str, untrusted_run: Callable[..., Path], downloads: list[Path], refused: Refused
) -> None:
    refused(command("evaluate", untrusted_run(content)), says)
    assert downloads == []


def test_texts_of_a_run_reach_the_terminal_on_one_line(run: Path, tmp_path: Path) -> None:
    """Names of folders, keys of a checkpoint and the versions in it, and fields of a configuration."""
    evil = "\x1b[31mEVIL\x1b[0m\nerror: fake\r"
    folder = run.rename(tmp_path / evil)
    newest, older = sorted((folder / "checkpoints").iterdir(), reverse=True)[:2]
    content = checkpoint.load(newest)
    checkpoint.save(newest, {**content, "run": {**content["run"], evil: 1}})
    content = checkpoint.load(older)
    content["state"]["made_with"]["torch"] = evil
    checkpoint.save(older, content)
    (folder / "summary.json").unlink()
    evaluated = script("evaluate", folder, "--proposal", "guide")
    for result in (evaluated, script("fit", *TINY, "--out", folder, "--resume")):
        assert result.returncode == 0, result.stderr
        assert "EVIL" in result.stderr
        assert all(line.isprintable() for line in (result.stdout + result.stderr).splitlines())
        assert not any(line.startswith("error: fake") for line in (result.stdout + result.stderr).splitlines())
    with pytest.raises(UserError, match="exists with different values of") as caught:
        RunFolder(folder).check({evil: 1})
    assert printable(str(caught.value)).isprintable()


def test_overlong_folder_name_is_rejected(tmp_path: Path, refused: Refused) -> None:
    refused(command("evaluate", tmp_path / ("x" * 300)), "no config.json")


@pytest.mark.parametrize("name", ["evaluation", "checkpoints"])
def test_nothing_is_written_through_a_link(
    name: str, untrusted_run: Callable[..., Path], tmp_path: Path, refused: Refused
) -> None:
    run = untrusted_run()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if (run / name).exists():
        (run / name).rename(tmp_path / "away")
    (run / name).symlink_to(elsewhere)
    refused(command("evaluate", run), f"{run / name} is a symbolic link")
    assert list(elsewhere.iterdir()) == []
