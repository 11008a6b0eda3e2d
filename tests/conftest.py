"""Setup of every test: float64 unless --dtype is given, an empty param store, validation on, a fixed seed."""

from __future__ import annotations

import gc
import os
import runpy
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import matplotlib as mpl
import pyro
import pytest
import torch
from filelock import FileLock

mpl.use("Agg")
pytest.register_assert_rewrite("helpers")
from helpers import calls  # noqa: E402
from helpers.calls import TINY, script  # noqa: E402

from pyro_vae.evaluate import AISConfig  # noqa: E402
from pyro_vae.evaluate.annealing import pilot  # noqa: E402
from pyro_vae.instruments import completions  # noqa: E402
from pyro_vae.trace import seeds  # noqa: E402

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread per worker and child process: there are as many workers as cores
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

# Tests in these folders run on the host: files, flags and figures. Modules elsewhere use the marker `host`.
HOST = {"config", "data", "instruments", "report", "runs", "scripts"}
MNIST_ROOT = Path(__file__).parents[2] / "shared" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device of the numerical tests: cpu or cuda")
    parser.addoption("--seed", type=int, default=0, help="seed of the random numbers of every test")
    parser.addoption("--dtype", default="float64", help="floating-point type of the numerical tests")


def pytest_configure(config: pytest.Config) -> None:
    if seed := config.getoption("--seed"):
        seeds._SALT += str(seed).encode()  # seeds that a test passes to the package give other numbers, too
    calls.DEVICE = config.getoption("--device")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Exclude the objects created by imports from garbage collection: they are many, and they stay alive."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    name = request.config.getoption("--device")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.exit("--device cuda: no CUDA device is available", returncode=2)
    return torch.device(name)


def _on_host(request: pytest.FixtureRequest) -> bool:
    in_host_folder = request.path.relative_to(Path(__file__).parent).parts[0] in HOST
    host, on_device = (request.node.get_closest_marker(name) for name in ("host", "on_device"))
    return on_device is None and (in_host_folder or host is not None)


@pytest.fixture(autouse=True)
def _fresh(request: pytest.FixtureRequest, device: torch.device) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, request.config.getoption("--dtype")))
    pyro.clear_param_store()
    pyro.set_rng_seed(request.config.getoption("--seed"))
    # A device context costs a Python call for each operation, and on the CPU it has no effect.
    place = nullcontext() if _on_host(request) or device.type == "cpu" else device
    with pyro.validation_enabled(True), place:
        yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder shared by all workers of a session. Create files in it only while holding a lock."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def tiny_run(shared: Path) -> Path:
    """Return a run of fit.py with the flags TINY, created once in a separate process. Read-only."""
    folder = shared / "tiny"
    with FileLock(shared / "tiny.lock"):
        if not folder.exists():
            result = script("fit", *TINY, "--out", folder)
            assert result.returncode == 0, result.stderr
            assert result.stderr == ""  # nothing on stderr unless it is a terminal
            assert "IWAE_50" in result.stdout
            assert "--data mnist" in result.stdout
    return folder


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """Return a writable copy of the tiny run."""
    return shutil.copytree(tiny_run, tmp_path / "tiny" / "elbo")


@pytest.fixture
def promised(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Return a function that records a figure for the guarantees of tests/README.md, printed when the session ends."""
    return lambda figure: record_property("promised", figure)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    figures = Counter(
        figure
        for report in reports
        if getattr(report, "when", None) == "call" and report.passed
        for name, figure in report.user_properties
        if name == "promised"
    )
    if figures:
        terminalreporter.section("guarantees")
    for figure, times in sorted(figures.items()):
        terminalreporter.line(figure if times == 1 else f"{times} x {figure}")


@pytest.fixture
def short_annealing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the pilot run of annealing, and the completions of sample.py, where their accuracy does not matter."""
    monkeypatch.setattr(pilot, "_MIN_STEPS", 4)
    monkeypatch.setattr(completions, "_ANNEALING", AISConfig(num_chains=4, num_temperatures=5, num_leapfrogs=2))


@pytest.fixture
def mnist_root() -> Path:
    if not (MNIST_ROOT / "MNIST" / "raw").is_dir():
        pytest.skip("real MNIST is not beside the checkout (../shared/data)")
    return MNIST_ROOT


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Run a script in this process, which saves an import of torch; expect status 2 and one line containing `words`."""

    def refused(call: list[str], *words: str) -> None:
        monkeypatch.setattr(sys, "argv", call[1:])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(call[1], run_name="__main__")
        assert caught.value.code == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        for word in words:
            assert word in lines[0]

    return refused
