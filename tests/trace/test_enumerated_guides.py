"""Guides with enumerated classes: exact expectations, and weights in which the classes are summed out."""

from __future__ import annotations

import logging
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.discrete import no_latents, pair
from pyro.infer import TraceEnum_ELBO
from torch import Tensor, nn

from pyro_vae import ELBO, IWAE, SVI, Optim, log_weights
from pyro_vae.evaluate import AISConfig, ais, log_weight_terms, posterior_probs
from pyro_vae.infer import STL, DReG, FreeBits
from pyro_vae.infer.objectives import Renyi
from pyro_vae.trace import (
    CompiledBackend,
)


class Clusters(nn.Module):
    """Classes y, z ~ N(m_y, 1), x ~ N(z, 0.5): the guide enumerates y, and its q(z|x, y) is exact."""

    def __init__(self, one_hot: bool = False) -> None:
        super().__init__()
        self.one_hot = one_hot
        self.shares, self.loc = nn.Parameter(torch.randn(3)), nn.Parameter(torch.tensor([-2.0, 0.0, 1.0]))
        self.classify = nn.Linear(1, 3)

    def prior(self, logits: Tensor) -> Any:
        return (dist.OneHotCategorical if self.one_hot else dist.Categorical)(logits=logits)

    def index(self, y: Tensor) -> Tensor:
        return y.argmax(-1) if self.one_hot else y

    def model(self, x: Tensor) -> None:
        pyro.module("clusters", self)
        with pyro.plate("data", len(x)):
            y = self.index(pyro.sample("y", self.prior(self.shares)))
            z = pyro.sample("z", dist.Normal(self.loc[y], 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("clusters", self)
        with pyro.plate("data", len(x)):
            logits = self.classify(x.unsqueeze(-1))
            y = self.index(pyro.sample("y", self.prior(logits), infer={"enumerate": "parallel"}))
            pyro.sample("z", dist.Normal((self.loc[y] + 4 * x) / 5, 0.2**0.5))

    def log_joint(self, x: Tensor) -> Tensor:
        """Return log p(x, y), (B, 3)."""
        return self.shares.log_softmax(0) + dist.Normal(self.loc, 1.25**0.5).log_prob(x.unsqueeze(1))

    def log_evidence(self, x: Tensor) -> Tensor:
        return self.log_joint(x).logsumexp(1)

    def elbo(self, x: Tensor) -> Tensor:
        log_q = self.classify(x.unsqueeze(-1)).log_softmax(-1)
        return (log_q.exp() * (self.log_joint(x) - log_q)).sum(1)


@pytest.mark.parametrize("one_hot", [False, True])
def test_weights_of_an_enumerated_guide_sum_out_its_classes(one_hot: bool) -> None:
    program, x = Clusters(one_hot), torch.linspace(-3, 3, 7)
    right = program.log_evidence(x).detach()
    for backend in (None, CompiledBackend()):
        found = log_weights(program.model, program.guide, x, 5, seed=0, backend=backend)
        torch.testing.assert_close(found, right.expand(5, -1), rtol=1e-12, atol=1e-12)
    parts = log_weight_terms(program.model, program.guide, x, 2000, seed=0)
    torch.testing.assert_close(parts.log_weights, right.expand(2000, -1), rtol=1e-12, atol=1e-12)
    # E[log p(x|z)] under the exact posterior of y and z, with y weighted exactly: 4.5 s.e. of 2,000 draws.
    probs = program.log_joint(x).softmax(1)
    residual = x.unsqueeze(1) - (program.loc + 4 * x.unsqueeze(1)) / 5
    expected = -0.5 * (math.log(2 * math.pi * 0.25) + (probs * (residual**2 + 0.2)).sum(1) / 0.25)
    error = parts.log_likelihood.mean(0) - expected
    assert (error.abs() < 5 * parts.log_likelihood.std(0) / 2000**0.5).all()


@pytest.mark.parametrize("num_particles", [1, 3])
@pytest.mark.parametrize("one_hot", [False, True])
def test_enumerated_guide_has_exact_bounds_and_gradients(num_particles: int, one_hot: bool) -> None:
    program, x = Clusters(one_hot), torch.linspace(-3, 3, 7)
    parameters = list(program.parameters())
    for objective, right in (
        (ELBO, program.elbo(x)),
        (IWAE, program.log_evidence(x)),
        (Renyi, program.log_evidence(x)),
    ):
        value, elbo = objective(num_particles).bounds(program.model, program.guide, x)
        torch.testing.assert_close(value, right, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(elbo, program.elbo(x).detach(), rtol=1e-12, atol=1e-12)
    # The weights have no variance, and neither has the ELBO's gradient with respect to q(y|x).
    found = torch.autograd.grad(ELBO(num_particles).bounds(program.model, program.guide, x)[0].sum(), parameters)
    right = torch.autograd.grad(program.elbo(x).sum(), parameters)
    torch.testing.assert_close(found[2:], right[2:], rtol=1e-10, atol=1e-10)


def test_enumerated_guide_trains_as_in_stock_pyro() -> None:
    program, x = Clusters(), torch.linspace(-3, 3, 7)
    found = []
    for loss in (TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss, ELBO().differentiable_loss):
        loss(program.model, program.guide, x)
        pyro.set_rng_seed(3)
        value = loss(program.model, program.guide, x)
        found.append((value.double(), torch.autograd.grad(value, list(program.parameters()))))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-10)


def test_steps_with_an_enumerated_guide_can_be_recorded(caplog: pytest.LogCaptureFixture) -> None:
    program, x = Clusters(), torch.linspace(-3, 3, 7)
    start = {name: value.clone() for name, value in program.state_dict().items()}
    found = []
    with caplog.at_level(logging.WARNING):
        for graph in (None, "recorded"):
            program.load_state_dict(start)
            pyro.clear_param_store()
            pyro.set_rng_seed(1)
            svi = SVI(program.model, program.guide, Optim(torch.optim.Adam, {"lr": 0.01}), ELBO(2), execution=graph)
            found.append(torch.stack([svi.step(x) for _ in range(12)]))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    assert not caplog.records


def test_annealing_sums_over_enumerated_classes() -> None:
    # As above: |estimate - truth| < 4.5 s.e. + 0.05 nats for each of 7 images.
    program, x = Clusters(), torch.linspace(-3, 3, 7)
    right = program.log_evidence(x).detach()
    for start in ("prior", "guide"):
        found = ais(program.model, program.guide, x, AISConfig(64, 60, 5, start=start), seed=0)
        weights = torch.as_tensor(found.log_w - found.lower).exp()
        assert ((torch.as_tensor(found.lower) - right).abs() < 4.5 * weights.std(0) / 8 + 0.05).all()


@pytest.mark.parametrize("one_hot", [False, True])
def test_class_posterior_is_exact_if_the_weights_are(one_hot: bool) -> None:
    program, x = Clusters(one_hot), torch.linspace(-3, 3, 7)
    (probs,) = posterior_probs(program.model, program.guide, x, 3, seed=0).values()
    torch.testing.assert_close(probs, program.log_joint(x).softmax(1).detach(), rtol=1e-12, atol=1e-12)


def test_posterior_of_each_discrete_latent_matches_a_sum_by_hand() -> None:
    shares, logits = torch.tensor([0.5, 0.2, 0.3]), torch.tensor([-1.0, 0.5, 2.0])
    loc = torch.tensor([[0.0, 1.0], [-1.0, 2.0], [3.0, 0.5]])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(shares))
            d = pyro.sample("d", dist.Bernoulli(logits=logits[c]))
            pyro.sample("x", dist.Normal(loc[c, d.long()], 1.0), obs=x)

    x = torch.linspace(-2, 3, 5)
    prior = shares.unsqueeze(1) * torch.stack([1 - logits.sigmoid(), logits.sigmoid()], 1)
    joint = prior * dist.Normal(loc, 1.0).log_prob(x.view(-1, 1, 1)).exp()
    joint = joint / joint.sum((1, 2), keepdim=True)
    found = posterior_probs(model, no_latents, x, 2)
    torch.testing.assert_close(found["c"], joint.sum(2).double(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found["d"], joint.sum(1).double(), rtol=1e-12, atol=1e-12)


def test_program_without_discrete_latents_has_no_class_posterior() -> None:
    _, closed = pair()
    with pytest.raises(ValueError, match="No latent is summed out"):
        posterior_probs(closed.model, closed.guide, torch.randn(5, 6))


@pytest.mark.parametrize("objective", [STL, DReG, FreeBits])
def test_objectives_that_cannot_sum_over_an_enumerated_guide_raise(objective: Any) -> None:
    program = Clusters()
    with pytest.raises(ValueError, match="'y' is summed out"):
        objective(2).bounds(program.model, program.guide, torch.randn(4))


def test_error_for_a_sampled_class_suggests_enumeration() -> None:
    program = Clusters()

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=torch.zeros(3)))
            pyro.sample("z", dist.Normal(x, 1.0))

    with pytest.raises(ValueError, match="enumerate"):
        ELBO().bounds(program.model, guide, torch.randn(4))
