"""The recorded step: the numbers of the eager one on the same noise, whatever the program is made of.

Most tests run the record operation by operation, since all that is ours is in it; the compiler has its own.
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
from pyro_vae.infer.graph_step import StepResult
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
# What the compiler itself is tried on: a plain program, a factorisation, masks.
COMPILED = [
    ("objective", "elbo", torch.float32, 1e-5),
    pytest.param("posterior", "full-rank", torch.float32, 1e-5, marks=pytest.mark.slow),
    pytest.param("prior", "realnvp", torch.float64, 1e-10, marks=pytest.mark.slow),
]


def both_ways(
    field: str, name: str, dtype: torch.dtype, graph: str, shape: tuple[int, ...] = (6, 5)
) -> tuple[SVI, StepResult, Tensor]:
    """Compute the second step of a program by its graph and eagerly, on the same noise; return the latter's loss."""
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
    assert torch.equal(torch.rand(3), after)  # as much noise was drawn
    assert outcome is not None
    assert outcome.finite
    return svi, outcome, loss


def check(svi: SVI, outcome: StepResult, loss: Tensor, rtol: float) -> None:
    """Loss, ELBO where there is one, and each gradient relative to its largest entry."""
    torch.testing.assert_close(outcome.loss, loss, rtol=rtol, atol=0)
    assert svi.elbo is not None
    torch.testing.assert_close(outcome.elbo, svi.elbo, rtol=rtol, atol=0, equal_nan=True)
    assert outcome.gradients.keys() == {name for name, p in svi.optim.params.items() if p.grad is not None}
    for name, found in outcome.gradients.items():
        expected = svi.optim.params[name].grad
        torch.testing.assert_close(found, expected, rtol=0, atol=rtol * float(expected.abs().max()))


@pytest.mark.parametrize(("field", "name"), CASES)
def test_the_record_has_the_numbers_of_the_program(field: str, name: str) -> None:
    check(*both_ways(field, name, torch.float64, "recorded"), rtol=1e-10)


@pytest.mark.parametrize("graph", ["recorded", pytest.param("compiled", marks=pytest.mark.slow)])
def test_a_mixture_over_colors_has_its_numbers_in_a_record(graph: str) -> None:
    check(*both_ways("likelihood", "logistic-mixture", torch.float64, graph, (3, 2, 5)), rtol=1e-10)


@pytest.mark.parametrize(("field", "name", "dtype", "rtol"), COMPILED)
def test_the_compiled_graph_has_the_numbers_of_the_program(
    field: str, name: str, dtype: torch.dtype, rtol: float
) -> None:
    check(*both_ways(field, name, dtype, "compiled"), rtol)


def test_two_hundred_compiled_steps_track_the_eager_ones() -> None:
    """Rounding differs in the sixteenth digit, of which 200 steps of Adam make less than 1e-8."""
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
    """A program of constrained `pyro.param`s, a Gamma prior and a LogNormal guide, in no module at all."""

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


def test_reading_a_program_leaves_its_params_to_stock_svi() -> None:
    """The probe of the layout runs within the first step; the driver then still finds what it has captured."""
    program = Handmade()
    stock = pyro.infer.SVI(program.model, program.guide, pyro.optim.Adam({"lr": 0.01}), IWAE(4))
    expected = take_steps(stock, 10)
    pyro.clear_param_store()
    svi = SVI(program.model, program.guide, Optim(torch.optim.Adam, {"lr": 0.01}), IWAE(4))
    assert take_steps(svi, 10) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("graph", ["recorded", "compiled"])
def test_a_program_without_modules_trains_by_its_record(graph: str) -> None:
    program = Handmade()
    runs = []
    for how in (None, graph):
        pyro.clear_param_store()
        svi = SVI(program.model, program.guide, Optim(torch.optim.Adam, dict(ADAM)), IWAE(4), execution=how)
        runs.append([*take_steps(svi, 30), float(pyro.param("rate").detach())])
    assert is_recorded(svi)
    assert runs[1] == pytest.approx(runs[0], rel=1e-9)
    assert abs(runs[1][-1] - 1.5) > 0.1
