"""Discrete latents that no guide draws are summed out: held against sums over all their values, and stock Pyro."""

from __future__ import annotations

import logging
import math
from itertools import product
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.discrete import Mixture, no_latents, pair
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from torch import Tensor, nn

from pyro_vae import ELBO, IWAE, SVI, Optim, log_weights, score
from pyro_vae.evaluate import Annealing, ais, bdmc, impute, log_weight_parts
from pyro_vae.infer import STL, BetaELBO, DReG, FreeBits, MeanFieldELBO, Objective
from pyro_vae.infer.objectives import Renyi
from pyro_vae.trace import (
    Batch,
    CompiledReader,
    choose_layouts,
    describe,
    draw,
    log_density,
    reading,
    run_pair,
)


class Classes(nn.Module):
    """A class of ten, and Bernoulli pixels given it: log p(x) is a sum of ten terms."""

    def __init__(self) -> None:
        super().__init__()
        self.shares, self.logits = nn.Parameter(torch.randn(10)), nn.Parameter(torch.randn(10, 5))

    def model(self, x: Tensor) -> None:
        pyro.module("classes", self)
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=self.shares))
            pyro.sample("x", dist.Bernoulli(logits=self.logits[c]).to_event(1), obs=x)

    def log_evidence(self, x: Tensor) -> Tensor:
        pixels = dist.Bernoulli(logits=self.logits).log_prob(x.unsqueeze(1)).sum(-1)
        return (self.shares.log_softmax(0) + pixels).logsumexp(1)


class Bits(nn.Module):
    """Eight bits that switch the pixels: 256 joint values; as one event, or in a plate of their own."""

    def __init__(self, plate: bool) -> None:
        super().__init__()
        self.plate = plate
        self.prior, self.weight = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8, 5))

    def model(self, x: Tensor) -> None:
        pyro.module("bits", self)
        data = pyro.plate("data", len(x), dim=-2 if self.plate else -1)
        if self.plate:
            with data, pyro.plate("places", 8, dim=-1):
                bits = pyro.sample("bits", dist.Bernoulli(logits=self.prior))
            with data:
                pixels = dist.Bernoulli(logits=(bits @ self.weight).unsqueeze(-2)).to_event(1)
                pyro.sample("x", pixels, obs=x.unsqueeze(1))
        else:
            with data:
                bits = pyro.sample("bits", dist.Bernoulli(logits=self.prior).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=bits @ self.weight).to_event(1), obs=x)

    def log_evidence(self, x: Tensor) -> Tensor:
        bits = torch.tensor(list(product((0.0, 1.0), repeat=8)))
        pixels = dist.Bernoulli(logits=bits @ self.weight).log_prob(x.unsqueeze(1)).sum(-1)
        return (dist.Bernoulli(logits=self.prior).log_prob(bits).sum(-1) + pixels).logsumexp(1)


@pytest.fixture
def x() -> Tensor:
    return torch.bernoulli(torch.full((4, 5), 0.5))


@pytest.mark.parametrize("build", [Classes, lambda: Bits(plate=False), lambda: Bits(plate=True)])
def test_a_program_of_discrete_latents_alone_has_its_exact_evidence(build: Any, x: Tensor) -> None:
    program = build()
    right = program.log_evidence(x)
    torch.testing.assert_close(log_weights(program.model, no_latents, x, 3, seed=0), right.detach().expand(3, -1))
    compiled = log_weights(program.model, no_latents, x, 3, seed=0, reader=CompiledReader())
    torch.testing.assert_close(compiled, right.detach().expand(3, -1))
    expected = torch.autograd.grad(right.sum(), list(program.parameters()))
    for objective in (ELBO(), ELBO(3), IWAE(3), Renyi(2)):
        value, elbo = objective.bounds(program.model, no_latents, x)
        torch.testing.assert_close(value, right, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(elbo, right.detach(), rtol=1e-12, atol=1e-12)
        found = torch.autograd.grad(value.sum(), list(program.parameters()))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


class Mixed:
    """A small random program: classes c and perhaps d given c, latents z and perhaps u, two observed sites."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator("cpu").manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device="cpu").to(torch.get_default_device())

        def flip() -> bool:
            return bool(torch.rand(1, generator=generator, device="cpu") < 0.5)

        self.classes = int(torch.randint(2, 5, (1,), generator=generator, device="cpu"))
        self.has_d, self.has_u, self.d_after_z, self.one_hot = flip(), flip(), flip(), flip()
        self.label_early = flip()
        self.c_logits, self.d_logits = draw(self.classes), draw(self.classes)
        self.z_loc, self.u_loc = draw(self.classes), draw(2)
        self.x_loc, self.y_logits = draw(self.classes, 3), draw(self.classes, 2)
        self.data = draw(3, 3), torch.tensor([0, 1, 1])
        self.z = draw(2, 3)
        self.u = draw(2, 3)

    @property
    def names(self) -> list[str]:
        return ["c", "d"] if self.has_d else ["c"]

    @property
    def latents(self) -> dict[str, Tensor]:
        return {"z": self.z, "u": self.u} if self.has_u else {"z": self.z}

    def model(self, x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            if self.one_hot:
                c = pyro.sample("c", dist.OneHotCategorical(logits=self.c_logits)).argmax(-1)
            else:
                c = pyro.sample("c", dist.Categorical(logits=self.c_logits))
            d = self._d(c) if self.has_d and not self.d_after_z else torch.zeros(())
            if self.label_early:
                pyro.sample("y", dist.Categorical(logits=self.y_logits[c]), obs=y)
            z = pyro.sample("z", dist.Normal(self.z_loc[c] + d, 0.7))
            d = self._d(c) if self.has_d and self.d_after_z else d
            u = pyro.sample("u", dist.Normal(self.u_loc[d.long()] + 0.3 * z, 1.2)) if self.has_u else z
            loc = self.x_loc[c] + z.unsqueeze(-1) * (1 + d).unsqueeze(-1) - u.unsqueeze(-1)
            pyro.sample("x", dist.Normal(loc, 0.8).to_event(1), obs=x)
            if not self.label_early:
                pyro.sample("y", dist.Categorical(logits=self.y_logits[c]), obs=y)

    def _d(self, c: Tensor) -> Tensor:
        return pyro.sample("d", dist.Bernoulli(logits=self.d_logits[c]), infer={"enumerate": "parallel"})

    def guide(self, x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            for name in self.latents:
                pyro.sample(name, dist.Normal(x.mean(-1), 1.5))

    def by_hand(self, observed: bool = True) -> Tensor:
        """Return log p(x, y, z) at the latents (2, 3), or log p(z), one value and one particle at a time."""
        x, y = self.data
        found = []
        for k in range(2):
            joint = []
            for values in product(range(self.classes), range(2) if self.has_d else (0,)):
                c = torch.full((3,), values[0])
                one_hot = nn.functional.one_hot(c, self.classes).to(x.dtype)
                given = {"c": one_hot if self.one_hot else c, "d": torch.full((3,), float(values[1]))}
                data = {name: value[k] for name, value in self.latents.items()} | given
                trace = poutine.trace(poutine.condition(self.model, data)).get_trace(x, y)
                trace.compute_log_prob()
                sites = [*self.names, *self.latents, *(["x", "y"] if observed else [])]
                joint.append(sum(trace.nodes[name]["log_prob"] for name in sites))
            found.append(torch.stack(joint).logsumexp(0))
        return torch.stack(found)


@pytest.mark.parametrize("seed", range(50))
def test_random_programs_equal_the_sum_over_all_values(seed: int) -> None:
    program = Mixed(seed)
    sites = log_density(program.model, program.data, program.latents)
    assert set(sites) == {*program.latents, "x", "y"}
    right = program.by_hand()
    layout = choose_layouts(program.model, program.guide, Batch(*program.data), 2).model
    for kind in ("states", "particles", "rows", "singly"):
        again = log_density(program.model, program.data, program.latents, layout._replace(kind=kind))
        torch.testing.assert_close(again, sites, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sum(sites.values()), right.double(), rtol=1e-12, atol=1e-12)
    of_latents = sum(sites[name] for name in program.latents)
    torch.testing.assert_close(of_latents, program.by_hand(observed=False).double(), rtol=1e-12, atol=1e-12)


def test_annealing_reaches_the_evidence_by_quadrature() -> None:
    # |estimate - truth| < 4.5 s.e. of each of 6 images and + 0.05 nats for the bias of the log: false alarms < 1e-4.
    shift = torch.tensor([-0.5, 0.5])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(0.3))
            z = pyro.sample("z", dist.Normal(shift[c.long()], 0.7))
            pyro.sample("x", dist.Normal(z.tanh() + c, 0.4), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 2.0))

    x = torch.linspace(-2, 2, 6)
    z = torch.linspace(-12, 12, 6001).unsqueeze(1)
    joint = [
        math.log(share) + dist.Normal(shift[c], 0.7).log_prob(z) + dist.Normal(z.tanh() + c, 0.4).log_prob(x)
        for c, share in ((0, 0.7), (1, 0.3))
    ]
    right = (torch.stack(joint).logsumexp(0).logsumexp(0) + math.log(24 / 6000)).double()
    for start in ("prior", "guide"):
        found = ais(model, guide, x, Annealing(64, 60, 5, start=start), seed=0)
        weights = torch.as_tensor(found.log_w - found.lower).exp()
        error = torch.as_tensor(found.lower) - right
        assert (error.abs() < 4.5 * weights.std(0) / 8 + 0.05).all()
    both = bdmc(model, guide, x, Annealing(32, 60, 5, start="prior"), seed=0)
    assert abs(both.gap.mean()) < 0.3  # over six seeds at most 0.06


def losses(program: Mixture, objective: Any, graph: str | None, x: Tensor, steps: int) -> Tensor:
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    svi = SVI(program.model, program.guide, Optim(torch.optim.Adam, {"lr": 0.01}), objective, graph=graph)
    return torch.stack([torch.as_tensor(svi.step(x)) for _ in range(steps)])


@pytest.mark.parametrize(
    "objective",
    [ELBO, IWAE, STL, DReG, Renyi, lambda k: BetaELBO(k, beta=0.5)],
    ids=lambda o: getattr(o, "__name__", ""),
)
@pytest.mark.parametrize("num_particles", [1, 4])
def test_training_equals_that_of_the_mixture_in_closed_form(objective: Any, num_particles: int) -> None:
    data = torch.randn(5, 6)
    gradients, values = [], []
    for program in pair():
        pyro.set_rng_seed(0)
        bound: Objective = objective(num_particles)
        bound.bounds(program.model, program.guide, data)  # the layout is chosen at the first use
        pyro.set_rng_seed(0)
        value, elbo = bound.bounds(program.model, program.guide, data)
        values.append((value, elbo))
        gradients.append(torch.autograd.grad(value.sum(), list(program.parameters())))
    torch.testing.assert_close(values[0], values[1], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("num_particles", [1, 3])
def test_a_recorded_step_is_the_eager_one(num_particles: int, caplog: pytest.LogCaptureFixture) -> None:
    data = torch.randn(5, 6)
    explicit, _ = pair()
    start = {name: value.clone() for name, value in explicit.state_dict().items()}
    found = []
    with caplog.at_level(logging.WARNING):
        for graph in (None, "recorded"):
            explicit.load_state_dict(start)
            found.append(losses(explicit, ELBO(num_particles), graph, data, 12))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    assert not caplog.records


def test_the_loss_and_gradients_are_those_of_stock_enumeration() -> None:
    data = torch.randn(5, 6)
    explicit, _ = pair()
    explicit_model = config_enumerate(explicit.model)
    stock = TraceEnum_ELBO(max_plate_nesting=1)
    found = []
    for loss in (stock.differentiable_loss, ELBO().differentiable_loss):
        loss(explicit_model, explicit.guide, data)
        pyro.set_rng_seed(3)
        value = loss(explicit_model, explicit.guide, data)
        found.append((value.double(), torch.autograd.grad(value, list(explicit.parameters()))))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-10)


def test_the_parts_of_the_weights_are_those_of_the_mixture() -> None:
    data = torch.randn(5, 6)
    explicit, closed = pair()
    found, right = (log_weight_parts(program.model, program.guide, data, 300, seed=0) for program in (explicit, closed))
    for one, other in zip(found[:3], right[:3], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)
    described = describe(explicit.model, explicit.guide, data)
    assert described.model["c"].role == "summed out"
    assert described.lacks is None


def test_a_masked_class_is_not_there() -> None:
    there = torch.tensor([True, False, True])
    loc = torch.tensor([-1.0, 2.0])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            with poutine.mask(mask=there):
                c = pyro.sample("c", dist.Bernoulli(0.2))
            pyro.sample("x", dist.Normal(torch.where(there, loc[c.long()], 0.5), 1.0), obs=x)

    x = torch.tensor([0.0, 1.0, 2.0])
    mixture = dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.8, 0.2])), dist.Normal(loc, 1.0))
    right = torch.where(there, mixture.log_prob(x), dist.Normal(0.5, 1.0).log_prob(x))
    torch.testing.assert_close(log_weights(model, no_latents, x, 1)[0], right.double(), rtol=1e-12, atol=1e-12)


def test_one_scale_of_all_sites_multiplies_the_loss() -> None:
    program = Classes()
    x = torch.bernoulli(torch.full((4, 5), 0.5))
    scaled = poutine.scale(program.model, scale=0.25)
    value, elbo = ELBO().bounds(scaled, no_latents, x)
    torch.testing.assert_close(value, 0.25 * program.log_evidence(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(elbo, program.log_evidence(x).detach(), rtol=1e-12, atol=1e-12)


def _with(prior: Any, shared: bool = False, scale: float = 1.0, factor: bool = False) -> Any:
    def model(x: Tensor) -> None:
        def draw() -> Tensor:
            with poutine.scale(scale=scale):
                return pyro.sample("c", prior).reshape(-1, 1, *x.shape[:0])

        outside = draw() if shared else None
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", prior) if outside is None and scale == 1 else outside
            c = draw().squeeze(-1) if c is None else c
            if factor:
                pyro.factor("f", 0.1 * torch.as_tensor(c).float())
            loc = torch.as_tensor(c).float().sum() if shared else torch.as_tensor(c).float()
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (_with(dist.Geometric(0.5)), "not finite"),
        (_with(dist.Poisson(2.0)), "not finite"),
        (_with(dist.Categorical(torch.ones(2000))), "2000 joint values"),
        (_with(dist.Bernoulli(0.5), shared=True), "shared by all images"),
    ],
)
def test_what_cannot_be_summed_out_is_refused(model: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        log_weights(model, no_latents, torch.randn(4), 1)
    with pytest.raises(ValueError, match=message):
        ELBO().bounds(model, no_latents, torch.randn(4))


def test_scales_that_differ_are_refused_in_the_loss_and_count_in_no_weight() -> None:
    model, x = _with(dist.Bernoulli(0.5), scale=0.5), torch.randn(4)
    with pytest.raises(ValueError, match="different scales"):
        ELBO().bounds(model, no_latents, x)
    right = (dist.Normal(0.0, 1.0).log_prob(x).exp() / 2 + dist.Normal(1.0, 1.0).log_prob(x).exp() / 2).log()
    torch.testing.assert_close(log_weights(model, no_latents, x, 1)[0], right.double(), rtol=1e-12, atol=1e-12)


def test_a_factor_beside_what_is_summed_out_is_no_density() -> None:
    model = _with(dist.Bernoulli(0.5), factor=True)
    with pytest.raises(ValueError, match="is no density"):
        ELBO().bounds(model, no_latents, torch.randn(4))
    assert log_weights(model, no_latents, torch.randn(4), 1).isnan().all()


def test_values_that_depend_on_another_latent_are_refused() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            n = pyro.sample("n", dist.Categorical(torch.ones(3)))
            c = pyro.sample("c", dist.Binomial(n + 1.0, torch.full((len(x),), 0.5)))
            pyro.sample("x", dist.Normal(c, 1.0), obs=x)

    with pytest.raises(ValueError, match="depend on other latents"):
        log_weights(model, no_latents, torch.randn(1), 1, seed=0)


@pytest.mark.parametrize("objective", [MeanFieldELBO, FreeBits])
def test_objectives_that_read_a_prior_say_what_they_lack(objective: Any) -> None:
    explicit, _ = pair()
    with pytest.raises(ValueError, match="'c' is summed out"):
        objective().bounds(explicit.model, explicit.guide, torch.randn(5, 6))


def test_a_missing_pixel_is_that_of_the_mixture() -> None:
    # 400 chains, ESS above 150: means within 0.25 (4.5 s.e. of a spread below 0.7) for each of 5 images.
    share, loc, slope, shift = 0.3, torch.tensor([-1.0, 1.5]), torch.tensor([1.0, -0.5]), torch.tensor([0.0, 1.0])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(share)).long()
            z = pyro.sample("z", dist.Normal(loc[c], 1.0))
            mean = z.unsqueeze(-1) * slope + shift[c].unsqueeze(-1)
            pyro.sample("x", dist.Normal(mean, 0.5).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, 0], 2.0))

    seen = torch.linspace(-2, 3, 5)
    truth = torch.stack([seen, torch.full((5,), 0.4)], 1)
    x = truth.clone()
    x[:, 1] = math.nan
    found = impute(model, guide, x, Annealing(400, 40, 5), fill=torch.zeros(2), truth=truth, seed=0)

    # Given c both pixels are Gaussian: means a_j m_c + b_c, covariance a_j a_k + 0.25 [j = k].
    first, second = (slope[j] * loc + shift for j in range(2))
    spread = 1.0 + 0.25
    weights = (dist.Normal(first, spread**0.5).log_prob(seen.unsqueeze(1)) + torch.tensor([0.7, 0.3]).log()).softmax(1)
    means = second + slope[1] / spread * (seen.unsqueeze(1) - first)
    variance = 0.25 + 0.25 - 0.25 / spread
    right = (weights * means).sum(1)
    assert ((torch.as_tensor(found.mean)[:, 1] - right).abs() < 0.25).all()
    second_moment = (weights * (variance + means**2)).sum(1)
    assert ((torch.as_tensor(found.variance)[:, 1] - (second_moment - right**2)).abs() < 0.4).all()
    log_p = (weights.log() + dist.Normal(means, variance**0.5).log_prob(truth[:, 1:])).logsumexp(1)
    assert found.log_missing is not None
    assert ((torch.as_tensor(found.log_missing) - log_p).abs() < 0.25).all()


def test_a_latent_that_all_images_share_stands_beside_a_class_that_is_summed_out() -> None:
    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(w.squeeze(-1).unsqueeze(-1) + 2 * c, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("w", dist.Normal(torch.ones(1), 0.5).to_event(1))

    x = torch.linspace(-1, 2, 4)
    found = log_weights(model, guide, x, 3, seed=0, shared="sampled")
    p, q = run_pair(model, guide, Batch(x), 1)
    assert torch.equal(p.values["w"], q.values["w"])
    value = ELBO(2).bounds(model, guide, x)[0]
    assert value.isfinite().all()
    # By hand, at the draws of the same seed.
    with reading(model, guide, x=x, seed=0):
        values, _ = draw(guide, x, 3, choose_layouts(model, guide, Batch(x), 3).guide)
    each = torch.stack(
        [math.log(s) + dist.Normal(values["w"] + 2 * c, 1.0).log_prob(x) for c, s in ((0, 0.7), (1, 0.3))]
    )
    prior = dist.Normal(0.0, 1.0).log_prob(values["w"]).sum(-1) - dist.Normal(1.0, 0.5).log_prob(values["w"]).sum(-1)
    torch.testing.assert_close(found, (each.logsumexp(0).sum(1) + prior).double(), rtol=1e-10, atol=1e-10)


class Relaxed(nn.Module):
    """A one-hot class that the guide relaxes, with a straight-through gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.classify, self.logits = nn.Linear(5, 3), nn.Linear(3, 5)

    def model(self, x: Tensor) -> None:
        pyro.module("relaxed", self)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.OneHotCategorical(logits=torch.zeros(3)))
            pyro.sample("x", dist.Bernoulli(logits=self.logits(y)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("relaxed", self)
        with pyro.plate("data", len(x)):
            logits = self.classify(x)
            relaxed = dist.RelaxedOneHotCategoricalStraightThrough(torch.tensor(0.7), logits=logits)
            pyro.sample("y", relaxed)


def test_a_relaxed_class_trains_like_stock_and_has_no_weights(x: Tensor) -> None:
    program = Relaxed()
    found = []
    for loss in (Trace_ELBO().differentiable_loss, ELBO().differentiable_loss):
        pyro.set_rng_seed(0)
        value = loss(program.model, program.guide, x)
        found.append((torch.as_tensor(value).double(), torch.autograd.grad(value, list(program.parameters()))))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)
    # A probability over a density is no weight: the number would change with the temperature.
    scores = score(program.model, program.guide, x, 10, seed=0)
    assert scores.reason is not None
    assert "relaxation" in scores.reason
    assert log_weights(program.model, program.guide, x, 10).isnan().all()
