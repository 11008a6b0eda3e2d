"""Finished runs opened again: any number in one process, each with its own weights."""

from __future__ import annotations

import copy
from pathlib import Path

import pyro
import pytest
import torch
from helpers.calls import inside

from pyro_vae import ELBO, SVI, Optim, score
from pyro_vae.runs import Run, load_run

pytestmark = pytest.mark.on_device

# Parameters in modules, with the same names in every run, and one `pyro.param`.
PROGRAM = """
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import nn


class Net(nn.Module):
    def __init__(self, pixels):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(pixels, 8), nn.Linear(4, pixels)

    def model(self, x):
        pyro.module("net", self)
        width = pyro.param("width", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 4), width).to_event(1))
            logits = self.decoder(z).reshape(*z.shape[:-1], *x.shape[1:])
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(2), obs=x)

    def guide(self, x):
        pyro.module("net", self)
        with pyro.plate("data", len(x)):
            loc, scale = self.encoder(x.flatten(1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


def factory(config, images):
    return Net(images.train[0].numel())
"""


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "net.py").write_text(PROGRAM)
    made = []
    for seed in (0, 1):
        made.append(folder / str(seed))
        flags = f"--program {folder}/net.py:factory --epochs 2 --num-samples 5 --seed {seed} --device cpu"
        result = inside("fit", *flags.split(), "--out", made[-1])
        assert result.returncode == 0, result.stderr
    return made


def opened(path: Path) -> Run:
    return load_run(path, program=f"{path.with_name('net.py')}:factory")


def weights(run: Run) -> dict[str, torch.Tensor]:
    with run.program.scope():
        return copy.deepcopy({**run.program.state_dict(), "width": pyro.param("width").detach()})


def elbos(run: Run) -> torch.Tensor:
    x = run.observed("test")
    return torch.as_tensor(score(run.program.model, run.program.guide, x, 20, seed=3).elbo)


def test_second_run_does_not_overwrite_the_first(paths: list[Path]) -> None:
    """Opened and scored in any order, each run keeps its weights and scores bit for bit."""
    alone = []
    for path in paths:
        pyro.clear_param_store()
        run = opened(path)
        alone.append((weights(run), elbos(run)))
    assert not torch.equal(alone[0][1], alone[1][1])
    pyro.clear_param_store()
    runs = [opened(path) for path in paths]
    for index in (0, 1, 0):
        found = elbos(runs[index])
        assert torch.equal(found, alone[index][1])
        for name, value in weights(runs[index]).items():
            assert torch.equal(value, alone[index][0][name]), name
    with runs[0].program.scope():  # the scope of one run does not affect another
        assert torch.equal(elbos(runs[1]), alone[1][1])
        assert torch.equal(elbos(runs[0]), alone[0][1])


def test_opening_a_run_leaves_the_callers_store_unchanged(paths: list[Path]) -> None:
    pyro.param("width", torch.tensor(7.0))
    before = pyro.get_param_store().get_state()
    run = opened(paths[0])
    elbos(run)
    with torch.no_grad():
        run.program.guide(run.observed("test"))
    after = pyro.get_param_store().get_state()
    assert after["params"].keys() == before["params"].keys()
    assert pyro.param("width").item() == 7.0


def test_training_continues_inside_the_scope(paths: list[Path]) -> None:
    """The weights trained there are those scored outside."""
    run = opened(paths[0])
    before = elbos(run)
    with run.program.scope():
        svi = SVI(run.program.model, run.program.guide, Optim(torch.optim.Adam, {"lr": 0.01}), ELBO())
        for _ in range(3):
            svi.step(run.observed("train")[:50])
        inside = elbos(run)
    assert torch.equal(elbos(run), inside)
    assert not torch.equal(inside, before)
