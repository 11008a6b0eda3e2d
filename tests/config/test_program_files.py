"""Programs in files: executed as Python executes a script, or rejected with a one-line error."""

from __future__ import annotations

import json
import pickle
import sys
import traceback
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyro
import pytest
from helpers.calls import TINY, command, inside
from helpers.fixtures import Refused
from helpers.program_files import NET

from pyro_vae.config import Config, programs
from pyro_vae.runs import load_images

HEAD = "from __future__ import annotations\n"


@pytest.fixture
def build() -> Callable[..., Any]:
    """Return a function that builds the program defined in a file."""
    images = load_images(Config(train_images=10, test_images=2, device="cpu")).pixels
    return lambda path: programs.build(Config(program=f"{path}:factory", device="cpu"), images)


def registered(path: Path) -> list[str]:
    return [name for name, module in sys.modules.items() if getattr(module, "__file__", None) == str(path)]


def test_file_with_postponed_annotations_and_a_dataclass_runs(tmp_path: Path, build: Callable[..., Any]) -> None:
    """Dataclasses, annotations and pickle look the module up by its name."""
    path = tmp_path / "program.py"
    sizes = "from dataclasses import dataclass\n@dataclass\nclass Sizes:\n    latent: int = 4\nSIZES = Sizes()\n"
    path.write_text(HEAD + NET + sizes)
    program = build(path)
    (name,) = registered(path)
    sizes = sys.modules[name].SIZES
    assert type(program).__module__ == name
    assert typing.get_type_hints(type(sizes)) == {"latent": int}
    assert pickle.loads(pickle.dumps(sizes)) == sizes
    build(path)
    assert registered(path) == [name]


def test_files_with_the_same_name_become_separate_modules(tmp_path: Path, build: Callable[..., Any]) -> None:
    """Neither replaces an installed module with that name."""
    built = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "json.py").write_text(NET)
        built.append(type(build(tmp_path / name / "json.py")))
    assert len({each.__module__ for each in built}) == 2
    assert sys.modules["json"] is json
    assert all(getattr(sys.modules[each.__module__], "Net") is each for each in built)  # noqa: B009


def test_failed_file_leaves_no_module_behind(tmp_path: Path, build: Callable[..., Any]) -> None:
    path = tmp_path / "program.py"
    path.write_text(NET + "\n1 / 0\n")
    with pytest.raises(ZeroDivisionError) as caught:
        build(path)
    assert traceback.extract_tb(caught.tb)[-1].filename == str(path)
    assert registered(path) == []
    path.write_text(NET)
    assert build(path).decoder.in_features == 4


@pytest.mark.parametrize(
    ("code", "value"),
    [
        (
            "import neighbour\ndef factory(c, i):\n    net = Net(0)\n    net.found = neighbour.X\n    return net\n",
            "beside",
        ),
        (
            "from nets import X\ndef factory(c, i):\n    net = Net(0)\n    net.found = X\n    return net\n",
            "in a package",
        ),
        (
            "def factory(c, i):\n    import neighbour\n    net = Net(0)\n    net.found = neighbour.X\n    return net\n",
            "beside",
        ),
    ],
)
def test_file_imports_its_neighbors(code: str, value: str, tmp_path: Path, build: Callable[..., Any]) -> None:
    """At the top level or inside functions, also if the file is a symbolic link, which Python resolves first."""
    (tmp_path / "real" / "nets").mkdir(parents=True)
    (tmp_path / "real" / "neighbour.py").write_text("X = 'beside'")
    (tmp_path / "real" / "nets" / "__init__.py").write_text("from nets.deeper import X")
    (tmp_path / "real" / "nets" / "deeper.py").write_text("X = 'in a package'")
    (tmp_path / "real" / "program.py").write_text(NET + code)
    (tmp_path / "link.py").symlink_to(tmp_path / "real" / "program.py")
    assert build(tmp_path / "real" / "program.py").found == value
    assert build(tmp_path / "link.py").found == value
    assert sys.path[0] == str(tmp_path / "real")
    assert sys.path.count(sys.path[0]) == 1


def test_neighbors_with_the_same_name_are_not_confused(tmp_path: Path, build: Callable[..., Any]) -> None:
    """Submodules included, in whatever order the files are run."""
    for name in ("a", "b"):
        (tmp_path / name / "nets").mkdir(parents=True)
        (tmp_path / name / "nets" / "deeper.py").write_text(f"X = {name!r}")
        (tmp_path / name / "program.py").write_text(NET + "from nets.deeper import X\nNet.found = X\n")
    assert [build(tmp_path / name / "program.py").found for name in "abba"] == list("abba")


def test_draws_at_import_follow_the_seed(tmp_path: Path, build: Callable[..., Any]) -> None:
    (tmp_path / "orders.py").write_text("import torch\nORDER = torch.randperm(1000)\n")
    (tmp_path / "program.py").write_text(NET + "import orders\nNet.found = orders.ORDER\n")
    drawn = []
    for seed in (0, 1, 0):
        pyro.set_rng_seed(seed)
        program = build(tmp_path / "program.py")
        drawn.append((program.found.tolist(), program.decoder.weight.tolist()))
    assert drawn[0] == drawn[2]
    assert all(one != other for one, other in zip(drawn[0], drawn[1], strict=True))


def test_modules_already_importable_are_imported_once(
    tmp_path: Path, build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """E.g. those in the working directory of a notebook, and those of the package itself."""
    (tmp_path / "shared_by_all.py").write_text("X = []")
    (tmp_path / "program.py").write_text(NET + "import shared_by_all\nNet.found = shared_by_all.X\n")
    monkeypatch.chdir(tmp_path)
    sys.path.insert(1, "")
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] in ("pyro_vae", "torch")}
    first, second = (build("program.py") for _ in range(2))
    assert first.found is second.found
    assert {name: sys.modules.get(name) for name in before} == before


@pytest.mark.parametrize("error", ["ValueError('negative scale')", "FileNotFoundError('weights.pt')"])
@pytest.mark.parametrize("place", ["\nraise {}\n", "\ndef factory(c, i):\n    raise {}\n"])
def test_error_in_the_file_keeps_its_traceback(error: str, place: str, tmp_path: Path) -> None:
    """Errors of a type that the scripts would otherwise reduce to one line."""
    path = tmp_path / "program.py"
    path.write_text(NET + place.format(error))
    with pytest.raises(RuntimeError) as caught:
        inside("fit", *TINY, "--program", f"{path}:factory", "--out", tmp_path / "run")
    shown = "".join(traceback.format_exception(caught.value))
    assert f'File "{path}", line {len(path.read_text().splitlines())}' in shown
    assert error.split("'")[1] in shown
    assert f"--program {path}:factory has failed in its own code" in shown
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("pixelcn", ["Unknown program 'pixelcn'", "pixelcnn", "path/to/file.py:factory"]),
        ("{folder}/net.py", ["Unknown program", "path/to/file.py:factory"]),
        ("{folder}:factory", ["no readable Python file '{folder}'"]),
        ("{folder}/notes.txt:factory", ["no readable Python file '{folder}/notes.txt'"]),
        ("x" * 5000 + ":factory", ["no readable Python file 'xxx"]),
        ("{folder}/net.py:", ["net.py defines no function ''"]),
        ("{folder}/net.py:torch", ["net.py defines no function 'torch'"]),
    ],
)
def test_invalid_factory_is_rejected_with_one_line(
    program: str, words: Sequence[str], tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "notes.txt").write_text(NET)
    call = command("fit", *TINY, "--program", program.format(folder=tmp_path), "--out", tmp_path / "run")
    refused(call, *(word.format(folder=tmp_path) for word in words))
    assert not (tmp_path / "run").exists()
