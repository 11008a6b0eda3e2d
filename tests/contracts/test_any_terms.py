"""Third-party programs: the terms of their losses and weights."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.any_program import Small, adam, binary
from pyro import poutine
from torch import Tensor, nn

from pyro_vae import ELBO, IWAE, SVI, Optim, log_weights, score
from pyro_vae.evaluate import AISConfig, ais, decode_sample, sample_prior
from pyro_vae.infer import STL, BetaELBO, DReG, MeanFieldELBO
from pyro_vae.trace import describe


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
def test_estimator_scores_again_with_the_same_dropout_mask(objective: Any, graph: str | None) -> None:
    """Mean gradient over 20,000 rows, whose standard deviation is below 4: within 5 s.e., false alarms 6e-7."""
    program, x = Dropped(), torch.ones(20_000)
    svi = SVI(program.model, program.guide, Optim(torch.optim.SGD, {"lr": 1.0 / len(x)}), objective(1), execution=graph)
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


@pytest.mark.usefixtures("short_annealing")
def test_factor_in_the_guide_is_a_loss_and_not_a_density() -> None:
    program, x = Small(), binary(8, 6)
    programs = with_factor(program, -5.0, in_guide=True)
    torch.testing.assert_close(
        log_weights(*programs, x, 30, seed=0), log_weights(program.model, program.guide, x, 30, seed=0)
    )
    short = AISConfig(8, 5, 2)
    plain = ais(program.model, program.guide, x, short, seed=0)
    np.testing.assert_allclose(ais(*programs, x, short, seed=0).log_w, plain.log_w)
    for objective in (ELBO(2), BetaELBO(2, 1.0), IWAE(2), MeanFieldELBO(2)):
        values = []
        for pair in ((program.model, program.guide), programs):
            pyro.set_rng_seed(1)
            values.append(float(objective.loss(*pair, x)))
        assert values[1] - values[0] == pytest.approx(-5.0 * 8)
    assert describe(*programs, x).losses == ("loss",)


def test_factor_in_the_model_makes_log_weights_nan() -> None:
    programs, x = with_factor(Small(), -5.0, in_guide=False), binary(8, 6)
    found = score(*programs, x, 30, seed=0)
    assert "factor 'loss'" in found.reason
    assert np.isnan(found.log_likelihood).all()


def test_masks_apply_to_the_analytic_divergence() -> None:
    """Masked rows cost nothing: KL(N(1, 0.5^2)

    N(0, 1)) of the remaining rows, in three dimensions.
    """
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
def test_analytic_divergence_in_the_row_layout(rows: tuple[bool, bool], size: int) -> None:
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


def test_noise_of_x_given_z_is_independent_of_z() -> None:
    """And of a user's draw after `manual_seed(0)`: correlations of 4,000 pairs are below 5 / sqrt(4000)."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    like = torch.zeros(2000, 2)
    values = sample_prior(model, like, seed=0)
    noise = decode_sample(model, like, values, seed=0) - values["z"][0]
    torch.manual_seed(0)
    users = torch.randn(2000, 2)
    for a, b in ((noise, values["z"][0]), (noise, users), (values["z"][0], users)):
        assert abs(float((a * b).mean())) < 5 / math.sqrt(4000)


def test_tied_weights_train_recorded_and_are_restored() -> None:
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
        svi = SVI(program.model, program.guide, adam(), ELBO(), execution=graph)
        runs.append([float(svi.step(x)) for _ in range(4)])
    assert runs[1] == pytest.approx(runs[0], rel=1e-12)
    state = torch.utils._pytree.tree_map_only(Tensor, torch.clone, svi.state_dict())
    pyro.clear_param_store()
    again = Tied()
    SVI(again.model, again.guide, adam(), ELBO()).load_state_dict(state, x)
    assert torch.equal(again.shared.weight, program.shared.weight)
