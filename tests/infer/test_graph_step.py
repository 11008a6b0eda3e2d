"""The recorded step: the same numbers as the eager one for the same noise, whatever the components of the program.

Most tests run the recorded graph without the compiler, which has its own tests.
"""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.programs import small_vae
from helpers.steps import ADAM, driver, is_recorded, take_steps
from torch import Tensor

from pyro_vae import data
from pyro_vae.config import Config, components, programs
from pyro_vae.infer import IWAE, SVI, Optim
from pyro_vae.infer.step_result import StepResult
from pyro_vae.trace import Batch

DENSITIES = {"gaussian", "continuous-bernoulli"}
GREY = DENSITIES | {"categorical", "logistic-mixture", "cross-entropy"}
COUNTS = {"poisson", "negative-binomial"}
TABLES = {
    name: getattr(components, name.upper() + "S") for name in ("prior", "posterior", "likelihood", "net", "objective")
}
CASES = [(field, name) for field, table in TABLES.items() for name in table] + [
    ("program", "two-layer"),
    ("program", "pixelvae"),
]
# Cases for the compiler itself: a plain program, a factorization, masks.
COMPILED = [
    ("objective", "elbo", torch.float32, 1e-5),
    pytest.param("posterior", "full-rank", torch.float32, 1e-5, marks=pytest.mark.slow),
    pytest.param("prior", "realnvp", torch.float64, 1e-10, marks=pytest.mark.slow),
]


def recorded_and_eager_step(
    field: str, name: str, dtype: torch.dtype, graph: str, shape: tuple[int, ...] = (6, 5)
) -> tuple[SVI, StepResult, Tensor]:
    """Return the driver, the outcome of the second step by its graph, and the eager loss for the same noise."""
    torch.set_default_dtype(dtype)
    chosen: dict[str, Any] = {field: name}
    counts = name in COUNTS
    grey = counts or (name in GREY and field == "likelihood")
    settings = Config(
        latent_dim=4, hidden_dim=8, num_particles=3, batch_size=5, epochs=2, binarize="none" if grey else "dynamic",
        **chosen,
    ).resolve()  # fmt: skip
    pixels = torch.randint(0, 256, (40, *shape), dtype=torch.uint8)
    rows = pixels.flatten(1).to(dtype)
    images = data.Numbers("random", rows, rows, rows, counts=True) if counts else data.Images("random", *[pixels] * 3)
    observed = images.observed(settings.binarize)
    if grey and name in DENSITIES:
        observed = observed.with_dequantization()
    device = str(torch.get_default_device())
    program = programs.build(settings, observed.pixels).to(device)
    objective = programs.build_objective(settings, 40)
    batches = observed.batches(5)
    svi = SVI(program.model, program.guide, Optim(torch.optim.Adam, {"lr": 1e-3}), objective, execution=graph)
    batch = next(iter(batches(0)))
    svi.step(batch, preprocess=batches.observe)
    objective.set_step(svi.steps)
    torch.manual_seed(1)
    assert svi.recorded.accepts(batches.observe, Batch(batch))
    outcome = svi.recorded(Batch(batch))
    after = torch.rand(3)
    torch.manual_seed(1)
    loss = svi._backward(batches.observe(batch))
    assert torch.equal(torch.rand(3), after)  # both used the same amount of noise
    assert outcome is not None
    assert outcome.finite
    return svi, outcome, loss


def check(svi: SVI, outcome: StepResult, loss: Tensor, rtol: float) -> None:
    """Compare the loss, the ELBO if defined, and each gradient relative to its largest entry."""
    torch.testing.assert_close(outcome.loss, loss, rtol=rtol, atol=0)
    assert svi.elbo is not None
    torch.testing.assert_close(outcome.elbo, svi.elbo, rtol=rtol, atol=0, equal_nan=True)
    assert outcome.gradients.keys() == {name for name, p in svi.optim.params.items() if p.grad is not None}
    for name, found in outcome.gradients.items():
        expected = svi.optim.params[name].grad
        torch.testing.assert_close(found, expected, rtol=0, atol=rtol * float(expected.abs().max()))


@pytest.mark.parametrize(("field", "name"), CASES)
def test_recorded_step_equals_the_eager_step(field: str, name: str) -> None:
    check(*recorded_and_eager_step(field, name, torch.float64, "recorded"), rtol=1e-10)


@pytest.mark.parametrize("graph", ["recorded", pytest.param("compiled", marks=pytest.mark.slow)])
def test_recorded_color_mixture_equals_the_eager_step(graph: str) -> None:
    check(*recorded_and_eager_step("likelihood", "logistic-mixture", torch.float64, graph, (3, 2, 5)), rtol=1e-10)


@pytest.mark.parametrize(("field", "name", "dtype", "rtol"), COMPILED)
def test_compiled_step_equals_the_eager_step(field: str, name: str, dtype: torch.dtype, rtol: float) -> None:
    check(*recorded_and_eager_step(field, name, dtype, "compiled"), rtol)


def test_two_hundred_compiled_steps_track_the_eager_ones() -> None:
    """Rounding differs in the 16th digit; 200 steps of Adam amplify that to less than 1e-8."""
    eager, vae = small_vae(), small_vae()
    vae.load_state_dict(eager.state_dict())
    expected = take_steps(driver(eager, IWAE(3), None), 200)
    pyro.clear_param_store()
    svi = driver(vae, IWAE(3), "compiled")
    found = take_steps(svi, 200)
    assert is_recorded(svi)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-9, atol=0)
    for p, reference in zip(vae.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(p, reference, rtol=0, atol=1e-8)


class Handmade:
    """A program of constrained `pyro.param`s, a Gamma prior and a LogNormal guide, without any module."""

    def model(self, x: Tensor) -> None:
        rate = pyro.param("rate", torch.tensor(1.5), constraint=dist.constraints.positive)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Gamma(2.0, rate).expand([2]).to_event(1))
            logits = (z.log().sum(-1)[..., None, None]).expand(*z.shape[:-1], 3, 2)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(2), obs=x)

    def guide(self, x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(2))
        scale = pyro.param("scale", torch.ones(2), constraint=dist.constraints.positive)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.LogNormal(loc, scale).to_event(1))


def test_probing_leaves_parameters_to_stock_svi() -> None:
    """The layout is probed within the first step; the driver still finds all parameters captured there."""
    program = Handmade()
    stock = pyro.infer.SVI(program.model, program.guide, pyro.optim.Adam({"lr": 0.01}), IWAE(4))
    expected = take_steps(stock, 10)
    pyro.clear_param_store()
    svi = SVI(program.model, program.guide, Optim(torch.optim.Adam, {"lr": 0.01}), IWAE(4))
    assert take_steps(svi, 10) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("graph", ["recorded", "compiled"])
def test_program_without_modules_trains_recorded(graph: str) -> None:
    program = Handmade()
    runs = []
    for how in (None, graph):
        pyro.clear_param_store()
        svi = SVI(program.model, program.guide, Optim(torch.optim.Adam, dict(ADAM)), IWAE(4), execution=how)
        runs.append([*take_steps(svi, 30), float(pyro.param("rate").detach())])
    assert is_recorded(svi)
    assert runs[1] == pytest.approx(runs[0], rel=1e-9)
    assert abs(runs[1][-1] - 1.5) > 0.1
