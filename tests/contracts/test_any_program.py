"""Programs of other people: whatever they do, the number is right, or one line says why there is none."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.oracles import BernoulliDecoder, LinearGaussian
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_vae import ELBO, IWAE, SVI, Fit, Optim, log_weights, score
from pyro_vae.evaluate import (
    Annealing,
    ais,
    bdmc,
    drawn_images,
    log_weight_parts,
    posterior_means,
    prior_latents,
)
from pyro_vae.infer import STL, BetaELBO, DReG, FreeBits, MeanFieldELBO
from pyro_vae.trace import Batch, CompiledReader, choose_layout, describe, draw, log_density, run, simulate

SHORT = Annealing(8, 50, 2)


def adam() -> Optim:
    return Optim(torch.optim.Adam, {"lr": 0.01})


def binary(*shape: int) -> Tensor:
    return torch.bernoulli(torch.full(shape, 0.5))


class Small(nn.Module):
    """A VAE of 6 binary pixels and 2 latents, whose parts the tests replace."""

    def __init__(self, inputs: int = 6, codes: int = 2) -> None:
        super().__init__()
        self.enc, self.dec = nn.Linear(inputs, 4), nn.Linear(codes, 6)

    def logits(self, z: Tensor) -> Tensor:
        return self.dec(z)

    def model(self, x: Tensor) -> None:
        pyro.module("small", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.logits(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("small", self)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.enc(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


# Records


BIAS = {"logits": 0.0}


class ByAttribute(Small):
    shift: Any = 0.0

    def logits(self, z: Tensor) -> Tensor:
        return self.dec(z) + self.shift


class ByGlobal(Small):
    def logits(self, z: Tensor) -> Tensor:
        return self.dec(z) + BIAS["logits"]


class ByArray(Small):
    def guide(self, x: Tensor) -> None:
        super().guide(x + float(x.detach().cpu().numpy().mean()))


class ByBuffer(Small):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(0.0))

    def logits(self, z: Tensor) -> Tensor:
        return self.dec(z) + float(self.shift)


def set_attribute(program: Any, step: int) -> None:
    program.shift = float(step // 3)


def set_labels(program: Any, step: int) -> None:
    program.shift = torch.full((6,), float(step))


def set_global(program: Any, step: int) -> None:
    BIAS["logits"] = float(step // 3)


def set_buffer(program: Any, step: int) -> None:
    program.shift.fill_(float(step))


def nothing(program: Any, step: int) -> None:
    pass


CHANGES = [
    (ByAttribute, set_attribute),
    (ByAttribute, set_labels),
    (ByGlobal, set_global),
    (ByArray, nothing),
    (ByBuffer, set_buffer),
]


@pytest.mark.parametrize(("kind", "change"), CHANGES)
def test_a_recorded_step_follows_whatever_the_program_reads(kind: type[Small], change: Any) -> None:
    losses = []
    for graph in (None, "recorded"):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        program = kind()
        svi = SVI(program.model, program.guide, adam(), ELBO(), graph=graph)
        taken = []
        for step in range(12):
            change(program, step)
            taken.append(float(svi.step(binary(5, 6))))
        losses.append(taken)
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)


@pytest.mark.parametrize(("kind", "change"), [case for case in CHANGES if case[0] is not ByArray])
def test_a_kept_reader_follows_whatever_the_program_reads(kind: type[Small], change: Any) -> None:
    program, reader = kind(), CompiledReader()
    reader_of_records = pytest.MonkeyPatch()
    with reader_of_records.context() as patch:
        patch.setattr("pyro_vae.trace.graphs.graph.compiled_record", lambda record, inputs: record)
        for step in range(6):
            change(program, step)
            x = binary(4, 6)
            expected = log_weights(program.model, program.guide, x, 120, seed=0)
            found = log_weights(program.model, program.guide, x, 120, seed=0, reader=reader)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_what_no_watch_sees_is_found_by_the_comparison(caplog: pytest.LogCaptureFixture) -> None:
    """A number in a C buffer changes between steps; the record is given up at its next comparison, on call 4."""
    hidden = np.zeros(1)
    losses = []
    for graph in (None, "recorded"):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        program = Small()
        view = memoryview(hidden)

        def model(x: Tensor, program: Small = program, view: memoryview = view) -> None:
            program.model(x) if view[0] == 0 else poutine.scale(program.model, scale=3.0)(x)

        svi = SVI(model, program.guide, adam(), ELBO(), graph=graph)
        taken = []
        for step in range(8):
            hidden[0] = step >= 4
            taken.append(float(svi.step(binary(5, 6))))
        losses.append(taken)
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)
    assert "other numbers than its record" in caplog.text


class Bounds:
    """State in every place that Python has for it."""

    __slots__ = ("shift",)

    def __init__(self) -> None:
        self.shift = 0.0


SLOTTED, ARRAY, QUEUE = Bounds(), np.zeros(3), [0.0]


class Elsewhere(Small):
    default = 0.0

    def __init__(self, read: Any) -> None:
        super().__init__()
        self.read = read

    @property
    def by_property(self) -> float:
        return BIAS["logits"]

    @staticmethod
    def by_static() -> float:
        return BIAS["logits"]

    def logits(self, z: Tensor) -> Tensor:
        return self.dec(z) + self.read(self)


def fill_array(program: Elsewhere, value: float) -> None:
    ARRAY[:] = value


def hook(program: Elsewhere, value: float) -> None:
    if value:
        program.dec.register_forward_hook(lambda net, inputs, output: output + value)


PLACES = {
    "an attribute that shadows one of the class": (lambda p: p.default, lambda p, v: setattr(p, "default", v)),
    "an attribute that comes later": (lambda p: getattr(p, "late", 0.0), lambda p, v: setattr(p, "late", v)),
    "a property": (lambda p: p.by_property, lambda p, v: BIAS.update(logits=v)),
    "a static method": (lambda p: p.by_static(), lambda p, v: BIAS.update(logits=v)),
    "a slot": (lambda p: SLOTTED.shift, lambda p, v: setattr(SLOTTED, "shift", v)),
    "an array": (lambda p: float(ARRAY[0]), fill_array),
    "a list": (lambda p: QUEUE[0], lambda p, v: QUEUE.__setitem__(0, v)),
    "a hook of a module": (lambda p: 0.0, hook),
}


@pytest.mark.parametrize("name", PLACES)
def test_a_record_is_made_anew_wherever_a_number_changes(name: str) -> None:
    """The change comes at step 9, long before the comparison at the sixteenth call."""
    read, write = PLACES[name]
    losses = []
    for graph in (None, "recorded"):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        program = Elsewhere(read)
        svi = SVI(program.model, program.guide, adam(), ELBO(), graph=graph)
        taken = []
        for step in range(14):
            write(program, 2.0 if step == 9 else 0.0) if step in (0, 9) else None
            taken.append(float(svi.step(binary(5, 6))))
        write(program, 0.0)
        losses.append(taken)
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)


class Averaged(Small):
    """Keeps an average of its codes, in an attribute or a buffer, and counts its calls."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.calls, self.log, self.average = how, 0, [], torch.zeros(())

    def logits(self, z: Tensor) -> Tensor:
        if self.how == "in place":
            self.average.mul_(0.9).add_(0.1 * z.detach().mean())
        elif self.how == "rebound":
            self.average = 0.9 * self.average + 0.1 * z.detach().mean()
        elif self.how == "counted":
            self.calls += 1
        else:
            self.log.append(1)
        return self.dec(z) + self.average + 0.1 * self.calls + 0.1 * len(self.log)


@pytest.mark.parametrize("how", ["in place", "rebound", "counted", "listed"])
def test_state_of_a_program_moves_as_under_stock_pyro(how: str) -> None:
    """By recording, comparing, looking and scoring it is left as it was."""
    losses = []
    for graph in (None, "recorded"):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        program = Averaged(how)
        svi = SVI(program.model, program.guide, adam(), ELBO(), graph=graph)
        losses.append([float(svi.step(binary(5, 6))) for _ in range(12)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)
    if how == "counted":
        before = program.calls
        assert before == 12
        score(program.model, program.guide, binary(4, 6), 20)
        describe(program.model, program.guide, binary(4, 6))
        assert program.calls == before


@pytest.mark.parametrize("graph", [None, "recorded"])
@pytest.mark.parametrize("change", ["set", "clear"])
def test_a_store_that_is_replaced_trains_on(change: str, graph: str | None) -> None:
    """As in stock Pyro, whose optimizer is of the tensor and starts anew with another one."""

    def model(x: Tensor) -> None:
        m = pyro.param("m", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(m, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    ends = []
    for ours in (False, True):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        svi: Any = (
            SVI(model, guide, adam(), ELBO(), graph=graph)
            if ours
            else pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
        )
        for step in range(30):
            if step == 10 and change == "set":
                pyro.get_param_store()["m"] = torch.tensor(3.0)
            elif step == 10:
                pyro.clear_param_store()
            svi.step(torch.full((5,), 1.0))
        ends.append(float(pyro.param("m").detach()))
    assert ends[1] == pytest.approx(ends[0], rel=1e-9)


def test_layouts_are_those_of_the_form_of_a_call() -> None:
    """A branch that mixes particles, taken from the 64th use on, by an argument and by an attribute."""
    program = Small()

    def model(x: Tensor, mix: bool = False) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            z = torch.softmax(3 * z, dim=1) if mix else z
            pyro.sample("x", dist.Bernoulli(logits=5 * program.dec(z)).to_event(1), obs=x)

    def guide(x: Tensor, mix: bool = False) -> None:
        program.guide(x)

    x, objective = binary(5, 6), IWAE(3)
    for _ in range(64):
        objective.bounds(model, guide, x)
    (fact,) = objective.known.facts.values()
    assert fact.layouts.model.kind == "particles"
    objective.bounds(model, guide, x, mix=True)
    assert [fact.layouts.model.kind for fact in objective.known.facts.values()] == ["particles", "rows"]


def test_a_gradient_hook_is_called_at_every_step(caplog: pytest.LogCaptureFixture) -> None:
    program, calls = Small(), []
    program.dec.weight.register_hook(lambda gradient: calls.append(1))
    svi = SVI(program.model, program.guide, adam(), ELBO(), graph="recorded")
    with caplog.at_level(logging.WARNING):
        for _ in range(6):
            svi.step(binary(5, 6))
    assert len(calls) >= 6
    assert "gradient hook" in caplog.text


@pytest.mark.parametrize(("graph", "loss"), [("record", ELBO()), ("recorded", Trace_ELBO())])
def test_a_graph_without_effect_is_refused(graph: str, loss: Any) -> None:
    program = Small()
    with pytest.raises(ValueError, match="graph"):
        SVI(program.model, program.guide, adam(), loss, graph=graph)


# Shapes and plates


def test_a_value_that_would_be_broadcast_against_its_event_is_refused() -> None:
    """One image of (4, 4) under an event of (1, 4, 4) would add up all images of the batch."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            logits = z[..., None, None].expand(*z.shape[:-1], 1, 4, 4)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(3), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))

    with pyro.validation_enabled(False):
        for call in (lambda x: score(model, guide, x, 5), lambda x: ELBO().loss(model, guide, x)):
            with pytest.raises(ValueError, match=r"Site 'x' has a value of shape \(6, 4, 4\).*event shape \(1, 4, 4\)"):
                call(binary(6, 4, 4))


class Offsets:
    """x = z + w with z ~ N(0, 1) of each row and w ~ N(0, 1) of all, in a plate as long as the batch or in none.

    x is N(0, 2 I + 1 1'), so that log p(x_1, ..., x_B) is known; the guide is wide enough.
    """

    def __init__(self, plate: bool) -> None:
        self.plate = plate

    def w(self, size: int, loc: Tensor, scale: float) -> Tensor:
        if not self.plate:
            return pyro.sample("w", dist.Normal(loc, scale))
        with pyro.plate("others", size):  # as many as images, and none of them belongs to one
            return pyro.sample("w", dist.Normal(loc, scale)).sum(-1, keepdim=True) / math.sqrt(size)

    def model(self, x: Tensor) -> None:
        w = self.w(len(x), torch.zeros(()), 1.0)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + w, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        w = self.w(len(x), torch.zeros(()), 1.0)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x - w) / 2, math.sqrt(0.5)))


@pytest.mark.parametrize("plate", [False, True])
def test_latents_of_all_images_have_a_joint_weight(plate: bool) -> None:
    """Against the closed form, 4 s.e. of the estimate: false alarms 6e-5. An image alone has no weight."""
    program, x = Offsets(plate), torch.randn(4)
    described = describe(program.model, program.guide, x)
    assert described.shared == ("w",)
    assert described.data_plate == "data"
    with pytest.raises(ValueError, match="Site 'w' stands outside the data plate 'data'"):
        score(program.model, program.guide, x, 10)
    log_w = log_weights(program.model, program.guide, x, 20_000, seed=0, shared="sampled")
    assert log_w.shape == (20_000,)
    covariance = 2 * torch.eye(4) + torch.ones(4, 4)
    truth = dist.MultivariateNormal(torch.zeros(4), covariance).log_prob(x)
    w = (log_w - log_w.max()).exp()
    error = float(w.std() / w.mean() / math.sqrt(len(w)))
    assert float(log_w.logsumexp(0) - math.log(len(log_w)) - truth) == pytest.approx(0, abs=4 * error)


def test_two_plates_of_one_size_that_nothing_tells_apart_are_refused() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("a", 3, dim=-1), pyro.plate("b", 3, dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"both have the size of the batch"):
        run(model, torch.zeros(3, 3))


def test_a_plate_that_subsamples_x_by_itself_is_refused() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=2) as rows:
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x[rows])

    with pytest.raises(ValueError, match="'data' draws 2 of the 6 rows of x by itself"):
        ELBO().loss(model, lambda x: None, torch.zeros(6))


# Layouts


def test_a_program_of_one_batch_is_read_one_particle_at_a_time() -> None:
    """Labels of the batch in its closure, and a softmax over what would be the images of a particle."""
    program, labels = Small(), torch.randn(5, 1)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            logits = program.dec(torch.softmax(z + labels, dim=1))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    x, z = binary(5, 6), torch.randn(7, 5, 2)
    layout = choose_layout(model, Batch(x), 7, {"z": z})
    assert (layout.kind, layout.reason) == ("singly", "its densities would change")
    found = sum(log_density(model, x, {"z": z}).values())
    expected = torch.cat([sum(log_density(model, x, {"z": part}).values()) for part in z.split(1)])
    torch.testing.assert_close(found, expected)
    for objective in (ELBO(3), IWAE(3), STL(3), DReG(3), MeanFieldELBO(3), FreeBits(3), BetaELBO(3)):
        assert objective.loss(model, program.guide, x).isfinite()


def test_noise_beside_the_sites_is_not_shared_by_particles() -> None:
    """A guide that draws by itself and hands its draw over: K particles are K draws."""

    def guide(x: Tensor) -> None:
        q = dist.Normal(x, 1.0).to_event(1)
        with pyro.plate("data", len(x)):
            z = q.rsample()
            pyro.sample("z", dist.Delta(z, log_density=q.log_prob(z), event_dim=1))

    values, _ = draw(guide, torch.randn(4, 3), 6)
    assert (values["z"].std(0) > 0).all()
    torch.testing.assert_close(
        posterior_means(guide, torch.full((1, 1), 7.0), seed=0), torch.full((1, 1), 7.0), atol=0.5, rtol=0
    )


def test_a_look_at_a_fresh_guide_leaves_it_to_be_trained() -> None:
    program, x = Small(), binary(8, 6)
    guide = AutoNormal(program.model)
    score(program.model, guide, x, 20, seed=0)
    svi = pyro.infer.SVI(program.model, guide, pyro.optim.Adam({"lr": 0.03}), Trace_ELBO())
    for _ in range(300):
        svi.step(x)
    values, _ = draw(guide, x, 3)
    assert values["z"].shape == (3, 8, 2)
    log_w = log_weights(program.model, guide, x, 2000, seed=0)
    assert (log_w.logsumexp(0) - math.log(2000) - program_evidence(program, x)).abs().max() < 0.2


def program_evidence(program: Small, x: Tensor) -> Tensor:
    """log p(x) by the trapezoidal rule over both latents."""
    axis = torch.linspace(-7, 7, 301)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        logits = program.logits(grid)
        log_x = x @ logits.T - nn.functional.softplus(logits).sum(1)
        log_z = dist.Normal(0.0, 1.0).log_prob(grid).sum(1)
    return (log_x + log_z).logsumexp(1) + 2 * math.log(axis[1] - axis[0])


def test_modules_are_those_that_run_whatever_holds_them() -> None:
    nets = {"enc": nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))}
    program = Small()

    class Holder:
        pass

    holder = Holder()
    holder.deep = [[[[[nets]]]]]

    def guide(x: Tensor) -> None:
        net = holder.deep[0][0][0][0][0]["enc"]
        pyro.module("enc", net)
        with pyro.plate("data", len(x)):
            loc, log_scale = net(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    x, before = binary(8, 6), nets["enc"][1].running_mean.clone()
    wrapped = poutine.mask(poutine.scale(guide, scale=1.0), mask=True)
    found = log_weights(program.model, wrapped, x, 50, seed=0)
    assert nets["enc"].training
    assert torch.equal(nets["enc"][1].running_mean, before)
    nets["enc"].eval()
    torch.testing.assert_close(log_weights(program.model, guide, x, 50, seed=0), found)
    nets["enc"].train()
    svi = SVI(program.model, guide, adam(), ELBO())
    svi.step(x)
    assert any("1.running_mean" in key for table in svi.state_dict()["modules"] for key in table)


def test_a_tensor_given_to_param_keeps_its_flag() -> None:
    program, start = Small(), torch.zeros(6)

    def model(x: Tensor) -> None:
        pyro.param("start", start)
        program.model(x)

    score(model, program.guide, binary(3, 6), 5)
    assert not start.requires_grad


# Terms


class Dropped(nn.Module):
    """z ~ N(m x w, 1) with a dropout mask m in {0, 2}, prior N(0, 1): d loss / d w = E[m^2] x^2 w, 2 w at x = 1."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.drop = nn.Parameter(torch.tensor(1.0)), nn.Dropout(0.5)

    def model(self, x: Tensor) -> None:
        pyro.module("dropped", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(0 * z, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.drop(x) * self.w, 1.0))


@pytest.mark.parametrize("graph", [None, "recorded"])
@pytest.mark.parametrize("objective", [STL, DReG])
def test_a_second_score_is_under_the_same_dropout(objective: Any, graph: str | None) -> None:
    """The mean gradient of 20,000 rows, whose standard deviation is below 4: within 5 s.e., false alarms 6e-7."""
    program, x = Dropped(), torch.ones(20_000)
    svi = SVI(program.model, program.guide, Optim(torch.optim.SGD, {"lr": 1.0 / len(x)}), objective(1), graph=graph)
    for _ in range(2):
        with torch.no_grad():
            program.w.fill_(1.0)
        svi.step(x)
    assert 1 - float(program.w.detach()) == pytest.approx(2, abs=5 * 4 / math.sqrt(len(x)))


def with_factor(program: Small, size: float, *, in_guide: bool) -> tuple[Any, Any]:
    def guide(x: Tensor) -> None:
        program.guide(x)
        with pyro.plate("again", len(x)):
            pyro.factor("loss", torch.full((len(x),), size), has_rsample=True)

    def model(x: Tensor) -> None:
        program.model(x)
        with pyro.plate("again", len(x)):
            pyro.factor("loss", torch.full((len(x),), size))

    return (program.model, guide) if in_guide else (model, program.guide)


def test_a_factor_of_the_guide_is_a_loss_and_no_density() -> None:
    program, x = Small(), binary(8, 6)
    programs = with_factor(program, -5.0, in_guide=True)
    torch.testing.assert_close(
        log_weights(*programs, x, 30, seed=0), log_weights(program.model, program.guide, x, 30, seed=0)
    )
    plain = ais(program.model, program.guide, x, SHORT, seed=0)
    np.testing.assert_allclose(ais(*programs, x, SHORT, seed=0).log_w, plain.log_w)
    for objective in (ELBO(2), BetaELBO(2, 1.0), IWAE(2), MeanFieldELBO(2)):
        values = []
        for pair in ((program.model, program.guide), programs):
            pyro.set_rng_seed(1)
            values.append(float(objective.loss(*pair, x)))
        assert values[1] - values[0] == pytest.approx(-5.0 * 8)
    assert describe(*programs, x).losses == ("loss",)


def test_a_factor_of_the_model_leaves_no_log_weight() -> None:
    programs, x = with_factor(Small(), -5.0, in_guide=False), binary(8, 6)
    found = score(*programs, x, 30, seed=0)
    assert "factor 'loss'" in found.reason
    assert np.isnan(found.log_likelihood).all()


def test_masks_count_in_the_analytic_divergence() -> None:
    """Rows that are masked out cost nothing: KL(N(1, 0.5^2) || N(0, 1)) of the others, in three dimensions."""
    seen = torch.tensor([True, False, True, True])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)), poutine.mask(mask=seen):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(0 * z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)), poutine.mask(mask=seen):
            pyro.sample("z", dist.Normal(torch.ones(3), 0.5).to_event(1))

    x = torch.randn(4, 3)
    divergence = 3 * 3 * (0.5 * (0.25 + 1 - 1) - math.log(0.5))
    expected = divergence - float(dist.Normal(0.0, 1.0).log_prob(x)[seen].sum())
    assert float(MeanFieldELBO(2).loss(model, guide, x)) == pytest.approx(expected)


@pytest.mark.parametrize("rows", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("size", [1, 3])
def test_the_analytic_divergence_of_programs_that_take_rows(rows: tuple[bool, bool], size: int) -> None:
    w = torch.randn(2, 3)

    def guide(x: Tensor) -> None:
        loc = (x.view(x.shape[0], 2) if rows[1] else x) @ w
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(loc, 0.3).to_event(1))

    def model(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            z = z.view(x.shape[0], 3) if rows[0] else z
            pyro.sample("x", dist.Normal(0 * z[..., :2], 1.0).to_event(1), obs=x)

    x = torch.randn(size, 2)
    divergence = (-math.log(0.3) + 0.5 * (0.09 + (x @ w) ** 2 - 1)).sum(-1)
    expected = dist.Normal(0.0, 1.0).log_prob(x).sum(-1) - divergence
    torch.testing.assert_close(MeanFieldELBO(4).bounds(model, guide, x)[0], expected)


def test_draws_of_x_given_z_share_no_noise_with_z() -> None:
    """Nor does the draw of a user after `manual_seed(0)`: correlations of 4,000 pairs below 5 / sqrt(4000)."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    like = torch.zeros(2000, 2)
    values = prior_latents(model, like, seed=0)
    noise = drawn_images(model, like, values, seed=0) - values["z"][0]
    torch.manual_seed(0)
    users = torch.randn(2000, 2)
    for a, b in ((noise, values["z"][0]), (noise, users), (values["z"][0], users)):
        assert abs(float((a * b).mean())) < 5 / math.sqrt(4000)


def test_tied_weights_train_by_a_record_and_are_restored() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = nn.Linear(6, 4)
            self.encoder = nn.ModuleList([self.shared, nn.Linear(4, 4)])
            self.decoder = nn.ModuleList([nn.Linear(2, 4), self.shared])

        def model(self, x: Tensor) -> None:
            pyro.module("decoder", self.decoder)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                logits = self.decoder[0](z).tanh() @ self.shared.weight
                pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

        def guide(self, x: Tensor) -> None:
            pyro.module("encoder", self.encoder)
            with pyro.plate("data", len(x)):
                loc, log_scale = self.encoder[1](self.shared(x).tanh()).chunk(2, -1)
                pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    x, runs = binary(8, 6), []
    for graph in (None, "recorded"):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        program = Tied()
        svi = SVI(program.model, program.guide, adam(), ELBO(), graph=graph)
        runs.append([float(svi.step(x)) for _ in range(4)])
    assert runs[1] == pytest.approx(runs[0], rel=1e-12)
    state = torch.utils._pytree.tree_map_only(Tensor, torch.clone, svi.state_dict())
    pyro.clear_param_store()
    again = Tied()
    SVI(again.model, again.guide, adam(), ELBO()).load_state_dict(state, x)
    assert torch.equal(again.shared.weight, program.shared.weight)


# Numbers that are none


def test_a_draw_outside_the_prior_has_no_weight_and_a_reason() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Exponential(1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    found = score(model, guide, torch.zeros(3), 50, seed=0)
    assert found.reason == "the guide draws 'z' outside the support of its prior"
    assert np.isnan(found.log_likelihood).all()


def test_a_score_of_an_image_by_those_beside_it_is_refused() -> None:
    program = Small()
    norm = nn.BatchNorm1d(6, track_running_stats=False)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=norm(program.dec(z))).to_event(1), obs=x)

    with pytest.raises(ValueError, match="scores an image at site 'x' by the images beside it"):
        score(model, program.guide, binary(5, 6), 10, seed=0)


def test_an_edge_that_float32_does_not_hold_is_refused_and_float64_is_right() -> None:
    """Dirichlet-multinomial: log p(x) in closed form. Guide and prior put much mass near the corners."""
    alpha = torch.tensor([0.05, 0.3, 1.0, 0.05])
    x = torch.tensor([[10.0, 0, 0, 0], [0, 4, 6, 0], [0, 0, 10, 0], [1, 2, 3, 4]])

    def programs(dtype: torch.dtype) -> tuple[Any, Any, Tensor]:
        a, counts = alpha.to(dtype), x.to(dtype)

        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                theta = pyro.sample("theta", dist.Dirichlet(a))
                pyro.sample("x", dist.Multinomial(10, theta, validate_args=False), obs=x)

        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("theta", dist.Dirichlet(0.5 * (a + x)))

        return model, guide, counts

    with pytest.raises(ValueError, match="near the edge of their support"):
        ais(*programs(torch.float32), Annealing(32, 50, 3), seed=0)


def test_a_guide_of_other_noise_at_every_call_is_no_start_of_a_path() -> None:
    program = LinearGaussian(2)
    x = program.simulate(4)

    def guide(x: Tensor) -> None:
        program.guide(x + torch.randn_like(x))

    with pytest.raises(ValueError, match="changes from call to call"):
        ais(program.model, guide, x, SHORT, seed=0)
    assert np.isfinite(ais(program.model, guide, x, Annealing(4, 10, 2, start="prior"), seed=0).lower).all()


# What a program is called with


class Conditional(nn.Module):
    """Labels beside x, by position, by name, or in a list with a number."""

    def __init__(self) -> None:
        super().__init__()
        self.enc, self.dec = nn.Linear(9, 4), nn.Linear(5, 6)

    def model(self, x: Tensor, y: Tensor, weights: list[Any] | None = None) -> None:
        pyro.module("conditional", self)
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            logits = self.dec(torch.cat([z, y.expand(*z.shape[:-1], 3)], -1))
            logits = logits if weights is None else weights[1] * logits + weights[0].unsqueeze(-1)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor, weights: list[Any] | None = None) -> None:
        pyro.module("conditional", self)
        with pyro.plate("data"):
            loc, log_scale = self.enc(torch.cat([x, y], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def batches() -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    x, y = binary(8, 6), torch.eye(3)[torch.arange(8) % 3]
    return [
        ((x, y), {}),
        ((x,), {"y": y}),
        ((x, y, [torch.randn(8), 2.0]), {}),
        ((x,), {"y": y, "weights": [y[:, 0], 0.5]}),
    ]


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("graph", [None, "recorded"])
def test_any_arguments_train_as_in_stock_pyro(number: int, graph: str | None) -> None:
    args, kwargs = batches()[number]
    losses, weights = [], []
    for ours in (False, True):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        program = Conditional()
        driver: Any = (
            SVI(program.model, program.guide, adam(), ELBO(), graph=graph)
            if ours
            else pyro.infer.SVI(program.model, program.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
        )
        losses.append([float(driver.step(*args, **kwargs)) for _ in range(5)])
        weights.append([p.detach().clone() for p in program.parameters()])
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


@pytest.mark.parametrize("number", range(4))
def test_a_batch_is_split_repeated_and_scored_with_all_that_has_its_rows(number: int) -> None:
    args, kwargs = batches()[number]
    program, batch = Conditional(), Batch(*args, **kwargs)
    values, _ = draw(program.guide, batch, 3)
    whole = sum(log_density(program.model, batch, values).values())
    parts = [
        sum(log_density(program.model, part, {"z": z}).values())
        for part, z in zip(batch.split(3), values["z"].split(3, 1), strict=True)
    ]
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    chosen = torch.tensor([5, 0])
    one = sum(log_density(program.model, batch[chosen], {"z": values["z"][:, chosen]}).values())
    torch.testing.assert_close(one, whole[:, chosen])
    assert len(batch.repeat(3)) == 24
    assert score(program.model, program.guide, batch, 20, seed=0).num_images == 8


def test_a_data_loader_of_images_and_labels_is_fitted() -> None:
    x, y = binary(40, 6), torch.eye(3)[torch.arange(40) % 3]
    program = Conditional()
    svi = SVI(program.model, program.guide, adam(), ELBO(), graph="recorded")
    loader = DataLoader(TensorDataset(x, y), batch_size=12, shuffle=True)
    epochs = list(Fit(svi, loader, epochs=30, valid=(x, y)))
    assert epochs[-1].step == 30 * 4
    assert epochs[-1].valid_elbo > epochs[0].valid_elbo
    with pytest.raises(TypeError, match="DataLoader"):
        Fit(svi, iter(loader), epochs=1)


def test_an_x_in_another_precision_is_named() -> None:
    program = Small().float()
    with pytest.raises(ValueError, match=r"x is torch\.\w+ and the program computes in"):
        score(
            program.model, program.guide, binary(3, 6).half() if torch.get_default_dtype() != torch.float16 else None, 5
        )


# Sites


def test_what_an_obs_mask_leaves_out_is_drawn_from_the_model() -> None:
    """The weight of an unobserved image is log p(z) - log q(z); the others' is as ever."""
    program, seen = Small(), torch.tensor([True, False, True, False])

    def model(how: str) -> Any:
        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
                fn = dist.Bernoulli(logits=program.dec(z)).to_event(1)
                if how == "mask":
                    pyro.sample("x", fn.mask(seen), obs=x)
                else:
                    pyro.sample("x", fn, obs=x, obs_mask=seen)

        return model

    x = binary(4, 6)
    expected = log_weights(model("mask"), program.guide, x, 20, seed=0)
    torch.testing.assert_close(log_weights(model("obs_mask"), program.guide, x, 20, seed=0), expected)


def test_an_auxiliary_site_carries_the_density_of_what_it_is_split_into() -> None:
    """The exact posterior of (a, b) given x ~ N(a + b, 1), drawn jointly: every weight is log N(x; 0, 3)."""
    covariance = torch.tensor([[2.0, -1.0], [-1.0, 2.0]]) / 3

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a, b = (pyro.sample(name, dist.Normal(0.0, 1.0)) for name in "ab")
            pyro.sample("x", dist.Normal(a + b, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = (x / 3).unsqueeze(-1).expand(-1, 2)
            both = pyro.sample("both", dist.MultivariateNormal(loc, covariance), infer={"is_auxiliary": True})
            for number, name in enumerate("ab"):
                pyro.sample(name, dist.Delta(both[..., number]))

    x = torch.randn(5)
    truth = dist.Normal(0.0, math.sqrt(3)).log_prob(x)
    torch.testing.assert_close(log_weights(model, guide, x, 6, seed=0), truth.expand(6, 5))
    torch.testing.assert_close(-ELBO(3).loss(model, guide, x), truth.sum())
    with pytest.raises(ValueError, match="auxiliary site 'both'"):
        ais(model, guide, x, SHORT)


def test_pixels_and_halves_are_sites_of_their_own() -> None:
    """A decoder observed whole, in a plate of pixels, and in halves: the same weights, and the same bounds."""
    program, x = BernoulliDecoder(2), binary(5, 6)

    def pixels(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            with pyro.plate("pixels", 6, dim=-2):
                pyro.sample("x", dist.Bernoulli(logits=program.net(z).transpose(-1, -2)), obs=x.T)

    def halves(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            for number, (logits, part) in enumerate(zip(program.net(z).chunk(2, -1), x.chunk(2, -1), strict=True)):
                pyro.sample(f"x{number}", dist.Bernoulli(logits=logits).to_event(1), obs=part)

    whole = log_weight_parts(program.model, program.guide, x, 40, seed=0)
    gap = bdmc(program.model, program.guide, x.expand(8, 5, 6).flatten(0, 1), SHORT, seed=0).gap
    for model in (pixels, halves):
        found = log_weight_parts(model, program.guide, x, 40, seed=0)
        torch.testing.assert_close(found.log_weights, whole.log_weights)
        images, values = simulate(model, x)
        assert set(images.unique().tolist()) <= {0.0, 1.0}
        assert values["z"].shape == (1, 5, 2)
        other = bdmc(model, program.guide, x.expand(8, 5, 6).flatten(0, 1), SHORT, seed=0).gap
        spread = math.sqrt((gap.var() + other.var()) / len(gap))
        assert abs(gap.mean() - other.mean()) < 4 * spread  # false alarms 6e-5


def test_latents_in_a_plate_of_time_are_read_with_the_images_first() -> None:
    """Two steps of time to the left of the images: every layout gives (K, B, T, ...), and the same weights."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("time", 2, dim=-2):
                u = pyro.sample("u", dist.Normal(z, torch.tensor([[0.5], [1.5]])))
                pyro.sample("x", dist.Normal(u, 1.0), obs=x.T)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.sum(-1) / 4, 0.8))
            with pyro.plate("time", 2, dim=-2):
                pyro.sample("u", dist.Normal((z + x.T) / 2, 0.9))

    x = torch.randn(5, 2)
    values, log_q = draw(guide, x, 7)
    assert values["z"].shape == (7, 5)
    assert values["u"].shape == (7, 5, 2)
    z, u = values["z"], values["u"]
    by_hand = dist.Normal((z.unsqueeze(-1) + x) / 2, 0.9).log_prob(u).sum(-1)
    torch.testing.assert_close(log_q["u"], by_hand)
    log_p = log_density(model, x, values)
    torch.testing.assert_close(log_p["u"], dist.Normal(z.unsqueeze(-1), torch.tensor([0.5, 1.5])).log_prob(u).sum(-1))
    torch.testing.assert_close(log_p["x"], dist.Normal(u, 1.0).log_prob(x).sum(-1))
    noise = torch.tensor([0.25 + 1, 2.25 + 1]).diag() + 1.0
    truth = dist.MultivariateNormal(torch.zeros(2), noise).log_prob(x)
    log_w = log_weights(model, guide, x, 20_000, seed=0)
    w = (log_w - log_w.amax(0)).exp()
    error = w.std(0) / w.mean(0) / math.sqrt(len(w))
    assert ((log_w.logsumexp(0) - math.log(len(w)) - truth).abs() < 5 * error).all()  # false alarms 3e-6


def test_observations_in_two_plates_of_the_size_of_the_batch_are_no_images() -> None:
    """Nothing says that the rows of one belong to those of the other; the batch has a joint weight all the same."""
    program, y, x = LinearGaussian(2), torch.randn(4), LinearGaussian(2).simulate(4)

    def model(x: Tensor) -> None:
        program.model(x)
        with pyro.plate("again", 4):
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    with pytest.raises(ValueError, match="Site 'y' stands outside the data plate 'data'"):
        score(model, program.guide, x, 5)
    found = log_weights(model, program.guide, x, 5, seed=0, shared="sampled")
    expected = program.log_evidence(x).sum() + dist.Normal(0.0, 1.0).log_prob(y).sum()
    torch.testing.assert_close(found, expected.expand(5))


def test_an_obs_mask_whose_rest_the_guide_draws_counts_on_both_sides() -> None:
    seen = torch.tensor([True, False, True, False])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x, obs_mask=seen)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x / 2, 1.0))
            with poutine.mask(mask=~seen):
                pyro.sample("x_unobserved", dist.Normal(z, 1.5))

    x = torch.randn(4)
    for objective, stock in ((ELBO(), Trace_ELBO()),):
        pyro.set_rng_seed(1)
        expected = stock.loss(model, guide, x)
        pyro.set_rng_seed(1)
        assert float(objective.loss(model, guide, x)) == pytest.approx(expected)
    found = log_weights(model, guide, x, 20_000, seed=0)
    truth = torch.where(seen, dist.Normal(0.0, math.sqrt(2)).log_prob(x), 0.0)
    w = (found - found.amax(0)).exp()
    error = w.std(0) / w.mean(0) / math.sqrt(len(w))
    assert ((found.logsumexp(0) - math.log(len(w)) - truth).abs() < 5 * error).all()  # false alarms 2e-6


def test_means_of_latents_with_a_plate_to_the_left_belong_to_their_images() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("time", 2, dim=-2), pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.T, 1e-9))

    x = torch.arange(6.0).reshape(3, 2)
    torch.testing.assert_close(posterior_means(guide, x, seed=0), x.double())


def test_a_part_of_the_pixels_drawn_by_a_plate_is_no_likelihood() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("pixels", 10, subsample_size=2, dim=-2) as rows:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x.T[rows])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(-1), 0.3))

    assert "plate 'pixels' draws 2 of 10" in score(model, guide, torch.randn(3, 10), 20, seed=0).reason


def test_batch_statistics_in_training_are_those_of_one_particle() -> None:
    """As many images as features, where three dimensions would pass for two; the statistics are as in stock Pyro."""
    norm = nn.BatchNorm1d(4, momentum=0.0)
    program = LinearGaussian(4)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            loc = (3 * norm(z)) @ program.weight.T
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    x = program.simulate(4)
    pyro.set_rng_seed(1)
    ours = torch.stack([ELBO(2).loss(model, program.guide, x) for _ in range(300)])
    stock = torch.tensor([Trace_ELBO(num_particles=2).loss(model, program.guide, x) for _ in range(300)])
    error = float((ours.var() + stock.var()).sqrt()) / math.sqrt(300)
    assert abs(float(ours.mean() - stock.mean())) < 5 * error  # false alarms 6e-7


def test_a_guide_may_call_the_plate_of_the_images_by_another_name() -> None:
    program, x = LinearGaussian(2), LinearGaussian(2).simulate(4)

    def guide(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.MultivariateNormal(program.posterior_mean(x), scale_tril=program.scale_tril))

    torch.testing.assert_close(log_weights(program.model, guide, x, 5), program.log_evidence(x).expand(5, 4))


def test_a_vocabulary_as_long_as_the_batch_is_no_batch() -> None:
    program, table = LinearGaussian(2), torch.randn(4, 7)

    def model(x: Tensor, table: Tensor) -> None:
        program.model(x - table.sum(0))

    def guide(x: Tensor, table: Tensor) -> None:
        program.guide(x - table.sum(0))

    x = program.simulate(4)
    expected = program.log_evidence(x - table.sum(0)).expand(3, 4)
    torch.testing.assert_close(log_weights(model, guide, (x, table), 3), expected)
