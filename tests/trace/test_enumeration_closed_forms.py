"""Enumerated classes in training, annealing and imputation, against closed forms, quadrature and stock Pyro."""

from __future__ import annotations

import logging
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.discrete import Mixture, pair
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor

from pyro_vae import ELBO, IWAE, SVI, Optim, log_weights
from pyro_vae.evaluate import AISConfig, ais, bdmc, impute, log_weight_terms
from pyro_vae.infer import STL, BetaELBO, DReG, Objective
from pyro_vae.infer.objectives import Renyi
from pyro_vae.trace import Batch, choose_layouts, describe, draw, read_only, trace_model_and_guide


def test_annealing_matches_the_evidence_by_quadrature() -> None:
    # |estimate - truth| < 4.5 s.e. + 0.05 nats for the bias of the log, for each of 6 images: false alarms < 1e-4.
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
        found = ais(model, guide, x, AISConfig(64, 60, 5, start=start), seed=0)
        weights = torch.as_tensor(found.log_w - found.lower).exp()
        error = torch.as_tensor(found.lower) - right
        assert (error.abs() < 4.5 * weights.std(0) / 8 + 0.05).all()
    both = bdmc(model, guide, x, AISConfig(32, 60, 5, start="prior"), seed=0)
    assert abs(both.gap.mean()) < 0.3  # over six seeds at most 0.06


def losses(program: Mixture, objective: Any, graph: str | None, x: Tensor, steps: int) -> Tensor:
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    svi = SVI(program.model, program.guide, Optim(torch.optim.Adam, {"lr": 0.01}), objective, execution=graph)
    return torch.stack([torch.as_tensor(svi.step(x)) for _ in range(steps)])


@pytest.mark.parametrize(
    "objective",
    [ELBO, IWAE, STL, DReG, Renyi, lambda k: BetaELBO(k, beta=0.5)],
    ids=lambda o: getattr(o, "__name__", ""),
)
@pytest.mark.parametrize("num_particles", [1, 4])
def test_training_matches_the_mixture_in_closed_form(objective: Any, num_particles: int) -> None:
    data = torch.randn(5, 6)
    gradients, values = [], []
    for program in pair():
        pyro.set_rng_seed(0)
        bound: Objective = objective(num_particles)
        bound.bounds(program.model, program.guide, data)  # the layout is probed on the first call
        pyro.set_rng_seed(0)
        value, elbo = bound.bounds(program.model, program.guide, data)
        values.append((value, elbo))
        gradients.append(torch.autograd.grad(value.sum(), list(program.parameters())))
    torch.testing.assert_close(values[0], values[1], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("num_particles", [1, 3])
def test_recorded_step_equals_the_eager_one(num_particles: int, caplog: pytest.LogCaptureFixture) -> None:
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


def test_loss_and_gradients_match_stock_enumeration() -> None:
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


def test_terms_of_the_weights_match_the_mixture() -> None:
    data = torch.randn(5, 6)
    explicit, closed = pair()
    found, right = (log_weight_terms(program.model, program.guide, data, 300, seed=0) for program in (explicit, closed))
    for one, other in zip(found[:3], right[:3], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)
    description = describe(explicit.model, explicit.guide, data)
    assert description.model["c"].role == "summed out"
    assert description.no_density_reason is None


def test_imputed_pixel_matches_the_mixture() -> None:
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
    found = impute(model, guide, x, AISConfig(400, 40, 5), fill_value=torch.zeros(2), truth=truth, seed=0)

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


def test_shared_latent_with_an_enumerated_class() -> None:
    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(w.squeeze(-1).unsqueeze(-1) + 2 * c, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("w", dist.Normal(torch.ones(1), 0.5).to_event(1))

    x = torch.linspace(-1, 2, 4)
    found = log_weights(model, guide, x, 3, seed=0, shared="sampled")
    p, q = trace_model_and_guide(model, guide, Batch(x), 1)
    assert torch.equal(p.values["w"], q.values["w"])
    value = ELBO(2).bounds(model, guide, x)[0]
    assert value.isfinite().all()
    # By hand, for the draws of the same seed.
    with read_only(model, guide, x=x, seed=0):
        values, _ = draw(guide, x, 3, choose_layouts(model, guide, Batch(x), 3).guide)
    each = torch.stack(
        [math.log(s) + dist.Normal(values["w"] + 2 * c, 1.0).log_prob(x) for c, s in ((0, 0.7), (1, 0.3))]
    )
    prior = dist.Normal(0.0, 1.0).log_prob(values["w"]).sum(-1) - dist.Normal(1.0, 0.5).log_prob(values["w"]).sum(-1)
    torch.testing.assert_close(found, (each.logsumexp(0).sum(1) + prior).double(), rtol=1e-10, atol=1e-10)
