"""Programs that cannot be recorded or compiled run eagerly, and the reason is logged in one line."""

from __future__ import annotations

import logging
import random
from typing import Any

import numpy as np
import pyro
import pytest
from helpers.programs import small_vae
from helpers.steps import driver, take_steps
from torch import Tensor, _inductor, nn
from torch._inductor.exc import InvalidCxxCompiler

from pyro_vae.infer import ELBO
from pyro_vae.trace.graphs import comparison


def branching(z: Tensor) -> Tensor:
    return z if z.sum() > 0 else 2 * z


def numpy_noise(z: Tensor) -> Tensor:
    return z + float(np.random.rand())


def python_noise(z: Tensor) -> Tensor:
    return z + random.random()


class Counted(nn.Module):
    """A schedule in Python, which a graph would freeze."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, z: Tensor) -> Tensor:
        self.calls += 1
        return z * (1 + self.calls / 10)


class Modified(nn.Module):
    def __init__(self, net: nn.Module, change: Any) -> None:
        super().__init__()
        self.net, self.change = net, change

    def forward(self, z: Tensor) -> Tensor:
        return self.net(self.change(z))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda: branching, "reads values off a tensor (bool)"),
        (lambda: numpy_noise, "NumPy"),
        (lambda: python_noise, "NumPy or Python"),
        (Counted, "Counted.calls changes from call to call"),
    ],
)
def test_untraceable_program_runs_eagerly_with_a_reason(
    change: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    runs = []
    for graph in (None, "recorded"):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        vae = small_vae()
        vae.likelihood.net = Modified(vae.likelihood.net, change())
        with caplog.at_level(logging.WARNING):
            runs.append(take_steps(driver(vae, graph=graph), 5))
    assert runs[0] == runs[1]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("The step is not recorded")
    assert reason in line
    assert "\n" not in line


def test_wrong_results_of_the_compiler_are_detected(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(record: Any, inputs: Any) -> Any:
        return lambda *args: tuple(out if n != 4 else 1.1 * out for n, out in enumerate(record(*args)))

    monkeypatch.setattr(comparison, "compile_graph", wrong)
    with caplog.at_level(logging.WARNING):
        found = take_steps(driver(small_vae(), graph="compiled"), 5)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "gives different results" in line
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    assert found == take_steps(driver(small_vae(), graph=None), 5)


class Annealed(ELBO):
    """An objective whose number changes at every step."""

    power = 1.0

    def set_step(self, step: int) -> None:
        self.power = 1.0 / (1 + step)

    def per_image(self, particles: Any) -> Tensor:
        return self.power * super().per_image(particles)


def test_objective_whose_number_keeps_changing_runs_eagerly(caplog: pytest.LogCaptureFixture) -> None:
    expected = take_steps(driver(small_vae(), Annealed(), None), 20)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    with caplog.at_level(logging.WARNING):
        assert take_steps(driver(small_vae(), Annealed()), 20) == pytest.approx(expected, rel=1e-12)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "Annealed.power changes from call to call" in line


def test_without_a_compiler_operations_run_one_by_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def absent(*args: Any, **kwargs: Any) -> Any:
        raise InvalidCxxCompiler

    monkeypatch.setattr(_inductor, "compile", absent)
    with caplog.at_level(logging.WARNING):
        found = take_steps(driver(small_vae(), graph="compiled"), 5)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("Not compiled (InvalidCxxCompiler")
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    assert found == take_steps(driver(small_vae(), graph=None), 5)
