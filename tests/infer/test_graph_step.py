"""The recorded step: the numbers of the eager one on the same noise, whatever the program is made of.

Most tests run the record operation by operation, since all that is ours is in it; the compiler has its own.
"""

from __future__ import annotations

import logging
import random
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.programs import images, small_vae
from helpers.steps import ADAM, driver, is_recorded, take_steps
from torch import Tensor, _inductor, nn
from torch._inductor.exc import InvalidCxxCompiler

from pyro_vae import data
from pyro_vae.config import Config, components, programs
from pyro_vae.errors import NonFiniteError
from pyro_vae.infer import ELBO, IWAE, SVI, BetaELBO, Optim
from pyro_vae.infer.graph_step import Outcome
from pyro_vae.trace import Batch, Graph, GraphError
from pyro_vae.trace.graphs import graph as graph_module

DENSITIES = {"gaussian", "continuous-bernoulli"}
GREY = DENSITIES | {"categorical", "logistic-mixture", "cross-entropy"}
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
    ("posterior", "full-rank", torch.float32, 1e-5),
    pytest.param("prior", "realnvp", torch.float64, 1e-10, marks=pytest.mark.slow),
]


def both_ways(
    field: str, name: str, dtype: torch.dtype, graph: str, shape: tuple[int, ...] = (6, 5)
) -> tuple[SVI, Outcome, Tensor]:
    """Compute the second step of a program by its graph and eagerly, on the same noise; return the latter's loss."""
    torch.set_default_dtype(dtype)
    chosen: dict[str, Any] = {field: name}
    grey = name in GREY and field == "likelihood"
    settings = Config(
        latent_dim=4, hidden_dim=8, num_particles=3, batch_size=5, epochs=2, binarize="none" if grey else "dynamic",
        **chosen,
    ).resolved()  # fmt: skip
    pixels = torch.randint(0, 256, (40, *shape), dtype=torch.uint8)
    observed = data.Images("random", pixels, pixels, pixels).observed(settings.binarize)
    if grey and name in DENSITIES:
        observed = observed.under_density()
    device = str(torch.get_default_device())
    program = programs.build(settings, observed.pixels).to(device)
    objective = programs.build_objective(settings, 40)
    batches = observed.batches(5)
    svi = SVI(program.model, program.guide, Optim(torch.optim.Adam, {"lr": 1e-3}), objective, graph=graph)
    batch = next(iter(batches(0)))
    svi.step(batch, observe=batches.observe)
    objective.at_step(svi.steps)
    torch.manual_seed(1)
    assert svi.recorded.takes(batches.observe, Batch(batch))
    outcome = svi.recorded(Batch(batch))
    after = torch.rand(3)
    torch.manual_seed(1)
    loss = svi._backward(batches.observe(batch))
    assert torch.equal(torch.rand(3), after)  # as much noise was drawn
    assert outcome is not None
    assert outcome.finite
    return svi, outcome, loss


def check(svi: SVI, outcome: Outcome, loss: Tensor, rtol: float) -> None:
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


class TestRecorded:
    """What the record must get right, whoever compiles it."""

    def test_noise_differs_from_step_to_step_and_follows_the_seed(self) -> None:
        svi = driver(small_vae())
        x = images(5)
        svi.step(x)
        for p in svi.optim.optimizer.param_groups:  # the weights stand still
            p["lr"] = 0.0
        torch.manual_seed(3)
        first = [float(svi.step(x)) for _ in range(5)]
        torch.manual_seed(3)
        assert [float(svi.step(x)) for _ in range(5)] == first
        assert len(set(first)) == 5

    def test_tracing_takes_nothing_from_the_random_streams(self) -> None:
        found = take_steps(driver(small_vae()), 3)
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        assert found == take_steps(driver(small_vae(), graph=None), 3)

    def test_a_smaller_last_batch_is_left_to_the_eager_step(self) -> None:
        svi = driver(small_vae())
        take_steps(svi, 3)
        assert is_recorded(svi)
        svi.step(images(2))
        assert len(svi.recorded._graph._records) == 1
        assert svi.steps == 4

    @pytest.mark.parametrize(("graph", "first"), [("recorded", 5), ("recorded", 2), ("compiled", 2)])
    def test_a_state_continues_a_recorded_run_to_the_bit(self, graph: str, first: int) -> None:
        """Also where the first batch after it is the smaller one: the size that is recorded is in the state."""
        pyro.set_rng_seed(0)
        svi = driver(small_vae(), graph=graph)
        take_steps(svi, 4)
        state = torch.utils._pytree.tree_map_only(Tensor, torch.clone, svi.state_dict())
        expected = [*take_steps(svi, 1, first), *take_steps(svi, 10)]
        pyro.clear_param_store()
        resumed = driver(small_vae(), graph=graph)
        resumed.load_state_dict(state, images(1))
        assert [*take_steps(resumed, 1, first), *take_steps(resumed, 10)] == expected
        assert is_recorded(resumed)

    def test_beta_is_live(self) -> None:
        """Over a warm-up each loss is that of the eager step, whose beta differs every time."""
        expected = take_steps(driver(small_vae(), BetaELBO(1, 4.0, warmup_steps=8), graph=None), 10)
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        svi = driver(small_vae(), BetaELBO(1, 4.0, warmup_steps=8))
        assert take_steps(svi, 10) == pytest.approx(expected, rel=1e-12)
        assert len(svi.recorded._graph._records) == 1

    def test_a_learning_rate_that_is_changed_is_live(self) -> None:
        svi = driver(small_vae())
        take_steps(svi, 3)
        before = [p.clone() for p in svi.optim.params.values()]
        svi.optim.optimizer.param_groups[0]["lr"] = 0.0
        take_steps(svi, 1)
        assert all(torch.equal(p, old) for p, old in zip(svi.optim.params.values(), before, strict=True))

    def test_a_part_that_is_unfrozen_or_put_into_evaluation_gets_a_record_of_its_own(self) -> None:
        runs = []
        for graph in (None, "recorded"):
            pyro.clear_param_store()
            pyro.set_rng_seed(0)
            vae = small_vae()
            vae.posterior.requires_grad_(False)
            svi = driver(vae, graph=graph)
            with pytest.warns(UserWarning, match="not registered"):
                losses = take_steps(svi, 3)
            vae.posterior.requires_grad_(True)
            runs.append([*losses, *take_steps(svi, 3), *take_steps(svi, 3)])
        assert runs[1] == pytest.approx(runs[0], rel=1e-12)
        vae.eval()
        take_steps(svi, 1)
        assert len(svi.recorded._graph._records) == 3

    @pytest.mark.parametrize("where", ["loss", "gradient"])
    def test_a_step_that_is_not_finite_leaves_the_weights(self, where: str) -> None:
        class Root(nn.Module):
            """The square root of a magnitude: finite at zero, its gradient is not."""

            def forward(self, value: Tensor) -> Tensor:
                return value + self.shift.abs().sqrt()

        vae = small_vae()
        root = Root()
        root.shift = nn.Parameter(torch.ones(()))
        vae.likelihood.net.append(root)
        svi = driver(vae)
        take_steps(svi, 3)
        with torch.no_grad():
            root.shift.fill_(float("nan") if where == "loss" else 0.0)
        before = [p.detach().clone() for p in vae.parameters()]
        with pytest.raises(NonFiniteError, match="at step 3 "):
            svi.step(images(5))
        for p, old in zip(vae.parameters(), before, strict=True):
            torch.testing.assert_close(p, old, rtol=0, atol=0, equal_nan=True)
        with torch.no_grad():
            root.shift.fill_(1.0)
        svi.step(images(5))  # what was wrong is put right
        assert is_recorded(svi)

    def test_batch_statistics_are_those_of_the_eager_run(self) -> None:
        """Tracing runs the program twice more, and must not leave that in its buffers."""
        kept = []
        for graph in (None, "recorded"):
            pyro.clear_param_store()
            pyro.set_rng_seed(0)
            vae = small_vae()
            vae.likelihood.net.insert(0, nn.BatchNorm1d(2, momentum=0.3))
            svi = driver(vae, graph=graph)
            take_steps(svi, 6)
            kept.append([buffer.clone() for buffer in vae.buffers()])
        assert is_recorded(svi)
        torch.testing.assert_close(*kept, rtol=1e-10, atol=1e-12)

    def test_a_net_that_nothing_shows_is_trained_all_the_same(self) -> None:
        """Its parameters are known from the record, not from a search."""
        hidden = {"net": [[[[[[nn.Linear(6, 2)]]]]]]}
        svi_pair = []
        for graph in (None, "recorded"):
            pyro.clear_param_store()
            pyro.set_rng_seed(0)
            vae = small_vae()
            hidden["net"] = [[[[[[nn.Linear(6, 2)]]]]]]

            def guide(x: Tensor) -> None:
                net = hidden["net"][0][0][0][0][0][0]
                pyro.module("hidden", net)
                with pyro.plate("data", x.shape[0]):
                    pyro.sample("z", dist.Normal(net(x.flatten(-2)), 1.0).to_event(1))

            svi = SVI(vae.model, guide, Optim(torch.optim.Adam, dict(ADAM)), ELBO(), graph=graph)
            svi_pair.append(take_steps(svi, 20))
        assert is_recorded(svi)
        assert svi_pair[1] == pytest.approx(svi_pair[0], rel=1e-12)


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
        svi = SVI(program.model, program.guide, Optim(torch.optim.Adam, dict(ADAM)), IWAE(4), graph=how)
        runs.append([*take_steps(svi, 30), float(pyro.param("rate").detach())])
    assert is_recorded(svi)
    assert runs[1] == pytest.approx(runs[0], rel=1e-9)
    assert abs(runs[1][-1] - 1.5) > 0.1


# What cannot be compiled


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


class Odd(nn.Module):
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
def test_what_cannot_be_traced_runs_eagerly_and_says_why(
    change: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    runs = []
    for graph in (None, "recorded"):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        vae = small_vae()
        vae.likelihood.net = Odd(vae.likelihood.net, change())
        with caplog.at_level(logging.WARNING):
            runs.append(take_steps(driver(vae, graph=graph), 5))
    assert runs[0] == runs[1]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("The step is not recorded")
    assert reason in line
    assert "\n" not in line


def test_a_compiler_that_is_wrong_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(record: Any, inputs: Any) -> Any:
        return lambda *args: tuple(out if n != 4 else 1.1 * out for n, out in enumerate(record(*args)))

    monkeypatch.setattr(graph_module, "compiled_record", wrong)
    with caplog.at_level(logging.WARNING):
        found = take_steps(driver(small_vae(), graph="compiled"), 5)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "gives other numbers" in line
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    assert found == take_steps(driver(small_vae(), graph=None), 5)


class Tempered(ELBO):
    """An objective with a schedule of its own, a number in Python."""

    power = 1.0

    def at_step(self, step: int) -> None:
        self.power = 1.0 if step < 3 else 0.5

    def objective(self, particles: Any) -> Tensor:
        return self.power * super().objective(particles)


def test_an_objective_whose_number_changes_once_gets_a_second_record() -> None:
    expected = take_steps(driver(small_vae(), Tempered(), None), 6)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    svi = driver(small_vae(), Tempered())
    assert take_steps(svi, 6) == pytest.approx(expected, rel=1e-12)
    assert len(svi.recorded._graph._records) == 2


class Annealed(ELBO):
    """An objective whose number changes at every step."""

    power = 1.0

    def at_step(self, step: int) -> None:
        self.power = 1.0 / (1 + step)

    def objective(self, particles: Any) -> Tensor:
        return self.power * super().objective(particles)


def test_an_objective_whose_numbers_change_is_run_by_pyro_from_then_on(caplog: pytest.LogCaptureFixture) -> None:
    expected = take_steps(driver(small_vae(), Annealed(), None), 20)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    with caplog.at_level(logging.WARNING):
        assert take_steps(driver(small_vae(), Annealed()), 20) == pytest.approx(expected, rel=1e-12)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "Annealed.power changes from call to call" in line


def test_a_part_that_takes_the_place_of_another_gets_a_record_of_its_own() -> None:
    """Also one without parameters, that may come to lie where the other has lain."""
    runs = []
    for graph in (None, "recorded"):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        vae = small_vae()
        vae.likelihood.net = nn.Sequential(vae.likelihood.net, nn.Identity())
        svi = driver(vae, graph=graph)
        losses = take_steps(svi, 3)
        for part in (nn.Tanh, nn.ReLU, nn.Softplus, nn.Identity):
            vae.likelihood.net[1] = part()
            losses += take_steps(svi, 2)
        runs.append(losses)
    assert runs[1] == pytest.approx(runs[0], rel=1e-12)


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


def test_shapes_that_depend_on_the_images_are_refused() -> None:
    with pytest.raises(GraphError, match="shapes depend on the images"):
        Graph(lambda x: (None, (x.nonzero().sum(),)))(torch.randn(5))


def test_inputs_may_be_laid_out_in_any_way() -> None:
    """Compiled for one layout in memory, called with a transposed tensor and with an expanded one."""
    compiled = Graph(lambda x: (None, ((x * torch.arange(4.0)).sum(1).exp(),)))
    for x in (torch.randn(3, 4), torch.randn(4, 3).mT, torch.randn(1, 4).expand(3, 4), torch.randn(3, 8)[:, ::2]):
        torch.testing.assert_close(compiled(x)[1][0], (x * torch.arange(4.0)).sum(1).exp())
    assert len(compiled._records) == 1


@pytest.mark.parametrize("compiled", [False, True])
def test_a_lack_of_memory_is_not_taken_for_what_cannot_be_recorded(compiled: bool) -> None:
    def function(x: Tensor) -> tuple[None, tuple[Tensor, ...]]:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        Graph(function, compiled=compiled)(torch.ones(3))
