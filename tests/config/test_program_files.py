"""Programs in files: run as Python runs a file, found again where they have been moved, and built as their fit did."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
import traceback
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from helpers.calls import TINY, command, inside

from pyro_vae.config import Config, programs
from pyro_vae.errors import CheckpointError
from pyro_vae.instruments import Result
from pyro_vae.runs import History, RunFolder, RunFolderError, load, load_images

Refused = Callable[..., None]
HEAD = "from __future__ import annotations\n"
NET = """
import random
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, seed):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(64, 8), nn.Linear(4, 64)
        self.order = torch.randperm(64)
        self.drawn = [seed, self.order.tolist(), random.random(), np.random.rand()]

    def model(self, x):
        pyro.module("net", self)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            logits = self.decoder(z)[..., self.order].unflatten(-1, (8, 8))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(2), obs=x)

    def guide(self, x):
        pyro.module("net", self)
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = self.encoder(x.flatten(-2)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def factory(config, images):
    return Net(config.seed)


def other(config, images):
    return Net(config.seed)
"""


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no folder of a test stay among those of modules."""
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def build() -> Callable[..., Any]:
    """Return what builds the program of a file."""
    images = load_images(Config(train_images=10, test_images=2, device="cpu")).pixels
    return lambda path: programs.build(Config(program=f"{path}:factory", device="cpu"), images)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of a program in a file, beside it; both may be copied, and neither changed."""
    folder = tmp_path_factory.mktemp("fitted")
    (folder / "net.py").write_text(NET)
    done = inside("fit", *TINY, "--seed", 5, "--program", f"{folder / 'net.py'}:factory", "--out", folder / "run")
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture
def moved(run: Path, tmp_path: Path) -> Path:
    """Return a copy of the run beside a copy of its program, under another name."""
    shutil.copytree(run, tmp_path / "run")
    shutil.copy(run.with_name("net.py"), tmp_path / "renamed.py")
    return tmp_path / "run"


def begun(path: Path) -> Any:
    """Return the program of a file as the fit of `run` built it."""
    torch.set_default_dtype(torch.float32)
    pyro.set_rng_seed(5)
    settings = Config(seed=5, device="cpu", program=f"{path}:factory")
    return programs.build(settings, load_images(settings).pixels)


def registered(path: Path) -> list[str]:
    return [name for name, module in sys.modules.items() if getattr(module, "__file__", None) == str(path)]


def test_a_file_with_a_dataclass_of_later_annotations_runs(tmp_path: Path, build: Callable[..., Any]) -> None:
    """Dataclasses, annotations and pickles look the module up by its name."""
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


def test_two_files_of_one_name_are_two_modules(tmp_path: Path, build: Callable[..., Any]) -> None:
    """Neither takes the name of an installed one."""
    built = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "json.py").write_text(NET)
        built.append(type(build(tmp_path / name / "json.py")))
    assert len({each.__module__ for each in built}) == 2
    assert sys.modules["json"] is json
    assert all(getattr(sys.modules[each.__module__], "Net") is each for each in built)  # noqa: B009


def test_a_file_that_fails_leaves_no_module(tmp_path: Path, build: Callable[..., Any]) -> None:
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
def test_a_file_imports_what_lies_beside_it(code: str, value: str, tmp_path: Path, build: Callable[..., Any]) -> None:
    """At its head or in its functions, also through a link to it, of which Python looks where it leads."""
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


def test_modules_of_one_name_beside_two_files_are_told_apart(tmp_path: Path, build: Callable[..., Any]) -> None:
    """Each time, in whatever order the files are run; a submodule, too."""
    for name in ("a", "b"):
        (tmp_path / name / "nets").mkdir(parents=True)
        (tmp_path / name / "nets" / "deeper.py").write_text(f"X = {name!r}")
        (tmp_path / name / "program.py").write_text(NET + "from nets.deeper import X\nNet.found = X\n")
    assert [build(tmp_path / name / "program.py").found for name in "abba"] == list("abba")


def test_what_a_module_beside_it_draws_is_of_the_seed(tmp_path: Path, build: Callable[..., Any]) -> None:
    (tmp_path / "orders.py").write_text("import torch\nORDER = torch.randperm(1000)\n")
    (tmp_path / "program.py").write_text(NET + "import orders\nNet.found = orders.ORDER\n")
    drawn = []
    for seed in (0, 1, 0):
        pyro.set_rng_seed(seed)
        program = build(tmp_path / "program.py")
        drawn.append((program.found.tolist(), program.decoder.weight.tolist()))
    assert drawn[0] == drawn[2]
    assert all(one != other for one, other in zip(drawn[0], drawn[1], strict=True))


def test_modules_that_python_finds_without_the_file_are_run_once(
    tmp_path: Path, build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of a notebook's own folder, and of the package itself."""
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
def test_an_error_of_its_own_code_keeps_its_traceback(error: str, place: str, tmp_path: Path) -> None:
    """Of the kinds that the scripts make one line of where they are ours."""
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
        ("{folder}:factory", ["no Python file '{folder}' to read"]),
        ("{folder}/notes.txt:factory", ["no Python file '{folder}/notes.txt' to read"]),
        ("x" * 5000 + ":factory", ["no Python file 'xxx"]),
        ("{folder}/net.py:", ["net.py defines no function ''"]),
        ("{folder}/net.py:torch", ["net.py defines no function 'torch'"]),
    ],
)
def test_what_names_no_factory_is_refused_in_one_line(
    program: str, words: Sequence[str], tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "notes.txt").write_text(NET)
    call = command("fit", *TINY, "--program", program.format(folder=tmp_path), "--out", tmp_path / "run")
    refused(call, *(word.format(folder=tmp_path) for word in words))
    assert not (tmp_path / "run").exists()


def test_a_run_is_scored_with_its_program_where_it_lies_now(run: Path, moved: Path) -> None:
    expected = json.loads((run / "summary.json").read_text())
    done = inside("evaluate", moved, "--program", f"{moved.with_name('renamed.py')}:factory")
    assert done.returncode == 0, done.stderr
    found = json.loads((moved / "evaluation" / "summary.json").read_text())
    for key in ("elbo", "log_likelihood"):
        assert found[key] == pytest.approx(expected[key], rel=1e-6)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], ["give that flag", "net.py:factory"]),
        (["--program", "vae"], ["give that flag", "net.py:factory"]),
        (["--program", "{here}/renamed.py"], ["give that flag", "net.py:factory"]),
        (["--program", "{here}/renamed.py:other"], ["'factory'", "'other'"]),
        (["--program", "{here}/net.py:factory"], ["no Python file '{here}/net.py' to read"]),
    ],
)
def test_a_run_is_scored_with_no_other_program(
    flags: Sequence[str], words: Sequence[str], moved: Path, refused: Refused
) -> None:
    flags, words = ([each.format(here=moved.parent) for each in some] for some in (flags, words))
    refused(command("evaluate", moved, *flags), *words)
    assert not (moved / "evaluation").exists()


def test_a_run_of_ours_is_scored_with_no_program_in_a_file(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.claim(Config().to_json())
    (folder.checkpoints / "step-000000001.safetensors").touch()
    for program in ("net.py:factory", "net.py:vae", "pixelcnn"):
        with pytest.raises(ValueError, match="is of --program 'vae': give that flag, and no other"):
            load.load_config(folder, {"program": program})
    assert load.load_config(folder, {"program": "vae"}) == load.load_config(folder, {})


def test_a_run_is_resumed_with_its_program_where_it_lies_now(run: Path, moved: Path, refused: Refused) -> None:
    """From its newest checkpoint, and on to the same numbers; also when it is moved again."""
    (moved / "summary.json").unlink()
    lines = (moved / "metrics.jsonl").read_text()
    flags = [*TINY, "--seed", 5, "--out", moved, "--resume", "--program"]
    refused(command("fit", *flags, f"{moved.with_name('renamed.py')}:other"), "was started with another program")
    done = inside("fit", *flags, f"{moved.with_name('renamed.py')}:factory")
    assert done.returncode == 0, done.stderr
    assert (moved / "metrics.jsonl").read_text() == lines  # no epoch was fitted again
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (run, moved)]
    assert summaries[0]["log_likelihood"] == summaries[1]["log_likelihood"]
    assert summaries[1]["config"]["program"] == f"{moved.with_name('renamed.py')}:factory"
    again = inside("fit", *flags, f"{run.with_name('net.py')}:factory")
    assert again.returncode == 0, again.stderr
    assert "nothing to resume" in again.stdout


def test_a_checkpoint_is_of_a_factory_wherever_its_file_lies(tmp_path: Path) -> None:
    run = {"seed": 0, "program": "it's/here.py:factory"}
    History(tmp_path, run).save(3, {"number": 3})
    for place in ("there.py:factory", "C:\\there.py:factory", run["program"]):
        assert History(tmp_path, {**run, "program": place}).newest() == (3, {"number": 3})
    for program in ("here.py:other", "factory", "vae", None, 3):
        with pytest.raises(CheckpointError, match=r"of another run: its program is \"it's/here\.py:factory\""):
            History(tmp_path, {**run, "program": program}).newest()


def test_a_run_folder_is_of_a_factory_wherever_its_file_lies(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.claim({"seed": 0, "program": "here.py:factory"})
    folder.check_same({"seed": 0, "program": "elsewhere/there.py:factory"})
    for program in ("here.py:other", "factory", "vae"):
        with pytest.raises(RunFolderError, match="another program;"):
            folder.check_same({"seed": 0, "program": program})
    with pytest.raises(RunFolderError, match="another seed;"):
        folder.check_same({"seed": 1, "program": "there.py:factory"})


@pytest.mark.parametrize("changes", [{}, {"seed": 1}, {"seed": 1, "num_samples": 3}])
def test_a_fitted_program_is_built_under_the_seed_of_its_run(changes: dict[str, Any], run: Path) -> None:
    """With all that it drew and keeps in no parameter, whatever the seed of the draws; the streams stay."""
    first, folder = begun(run.with_name("net.py")), RunFolder(run)
    settings = load.load_config(folder, {"program": f"{run.with_name('net.py')}:factory", "device": "cpu", **changes})
    pyro.set_rng_seed(8)
    expected = float(torch.rand(())), np.random.rand()
    pyro.set_rng_seed(8)
    found = load.restore(folder, settings, download=False)
    assert (float(torch.rand(())), np.random.rand()) == expected
    assert found.program.drawn == first.drawn
    assert found.config.seed == changes.get("seed", 5)
    assert not torch.equal(found.program.decoder.weight, first.decoder.weight)
    untrained = load.rebuild(folder, settings, found.images)
    assert untrained.drawn == first.drawn
    assert torch.equal(untrained.decoder.weight, first.decoder.weight)


def test_the_seed_of_an_evaluation_is_that_of_its_draws(
    run: Path, moved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other draws from the same program, and a probe of the weights that the fit began with."""
    probed: dict[str, Any] = {}

    def probe(program: Any, untrained: Any, *rest: object) -> Result:
        probed.update(program=program, untrained=untrained)
        return Result(None, {"probe": "it is noted"})

    monkeypatch.setattr("pyro_vae.instruments.probe.measure_probe", probe)
    done = inside(
        "evaluate",
        moved,
        "--program",
        f"{moved.with_name('renamed.py')}:factory",
        "--device",
        "cpu",
        "--seed",
        1,
        "--probe",
    )
    assert done.returncode == 0, done.stderr
    expected = json.loads((run / "summary.json").read_text())
    found = json.loads((moved / "evaluation" / "summary.json").read_text())
    assert found["config"]["seed"] == 1
    assert found["log_likelihood"] != expected["log_likelihood"]
    assert found["log_likelihood"] == pytest.approx(expected["log_likelihood"], abs=0.5)
    assert probed["untrained"].drawn == probed["program"].drawn
    assert torch.equal(probed["untrained"].encoder.weight, begun(run.with_name("net.py")).encoder.weight)


@pytest.mark.parametrize("seed", [[], ["--seed", "1"]])
def test_samples_are_of_the_program_of_the_run(
    seed: Sequence[str], moved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pictures of `sample.py` are of the permutation that was fitted."""
    drawn = []
    for name in ("prior", "reconstructions", "latents", "completions"):
        monkeypatch.setattr(
            f"pyro_vae.instruments.samples.write_{name}", lambda results, program, *rest: drawn.append(program)
        )
    done = inside("sample", moved, "--program", f"{moved.with_name('renamed.py')}:factory", *seed)
    assert done.returncode == 0, done.stderr
    assert [program.drawn for program in drawn] == [begun(moved.with_name("renamed.py")).drawn] * 4
