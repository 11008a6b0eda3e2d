"""Objectives and gradient estimators: order of the bounds, equal expectations, and lower variances.

Comparisons of expectations are z-tests over repeats, for all coordinates at once at a level of 1e-4 in all
(Bonferroni), with fixed seeds.
"""

from __future__ import annotations

import math
from itertools import pairwise

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.oracles import LinearGaussian
from helpers.programs import images, small_vae, two_layer
from scipy.stats import norm
from scipy.stats import t as student
from torch import Tensor, nn

from pyro_vae.evaluate import score
from pyro_vae.infer import ELBO, IWAE, STL, BetaELBO, DReG, MeanFieldELBO, Objective, Renyi
from pyro_vae.model import VAE
from pyro_vae.model.priors.mixture import GaussianMixture
from pyro_vae.model.priors.vamp import VampPrior


def vamp_vae() -> VAE:
    vae = small_vae()
    vae.prior = VampPrior(vae.posterior, images(4))
    return vae


PROGRAMS = {"vae": small_vae, "two-layer": two_layer, "vamp": vamp_vae}


def gradients(objective: Objective, program: nn.Module, x: Tensor, repeats: int) -> Tensor:
    """Return gradients of the loss, (repeats, number of parameters)."""
    rows = []
    for _ in range(repeats):
        program.zero_grad()
        objective.differentiable_loss(program.model, program.guide, x).backward()
        rows.append(torch.cat([p.grad.flatten() for p in program.parameters()]))
    return torch.stack(rows)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == "two-layer" else []) for name in PROGRAMS]
)
@pytest.mark.parametrize(("plain", "reduced"), [(ELBO(2), STL(2)), (IWAE(5), DReG(5))])
def test_gradients_have_the_same_expectation(plain: Objective, reduced: Objective, name: str) -> None:
    program = PROGRAMS[name]()
    with torch.no_grad():  # away from the initialization, where some gradients vanish
        for p in program.parameters():
            p.add_(0.3 * torch.randn_like(p))
    x = images(2).repeat(8, 1, 1)  # a gradient is the sum over eight copies of each image, with noise of their own
    first, second = gradients(plain, program, x, 100), gradients(reduced, program, x, 100)
    error = ((first.var(0) + second.var(0)) / 100).sqrt()
    moved = error > 1e-12
    statistic = ((first.mean(0) - second.mean(0))[moved] / error[moved]).abs()
    assert statistic.max() < student.isf(1e-4 / 2 / moved.sum().item(), 99)


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize(("plain", "reduced"), [(ELBO(2), STL(2)), (IWAE(5), DReG(5))])
def test_values_equal_those_of_the_plain_objective(plain: Objective, reduced: Objective, name: str) -> None:
    program, x = PROGRAMS[name](), images(3)
    plain.loss(program.model, program.guide, x)  # the layout is probed on the first call
    values = []
    for objective in (plain, reduced):
        pyro.set_rng_seed(2)
        values.append(objective.bounds(program.model, program.guide, x)[0])
    torch.testing.assert_close(values[1], values[0])


def test_stl_has_zero_variance_at_the_exact_posterior() -> None:
    """The guide's parameters are set to the posterior of a linear-Gaussian program."""
    oracle = LinearGaussian(1)
    x = oracle.simulate(5)

    class Exact(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.Parameter(oracle.weight.T @ torch.eye(7) * oracle.covariance / oracle.noise)
            self.offset = nn.Parameter(-(self.slope.detach() @ oracle.bias))
            self.log_scale = nn.Parameter(oracle.covariance.diagonal().sqrt().log())

        def guide(self, x: Tensor) -> None:
            loc = x @ self.slope.T + self.offset
            with pyro.plate("data", x.shape[0]):
                pyro.sample("z", dist.Normal(loc, self.log_scale.exp()).to_event(1))

    exact = Exact()
    exact.model = oracle.model
    assert gradients(STL(3), exact, x, 20).abs().max() < 1e-10
    assert gradients(ELBO(3), exact, x, 20).std(0).min() > 0.1


def test_dreg_has_lower_variance_than_iwae() -> None:
    """For the encoder, at K = 50; the ratio is about 5 here, and 1.5 is required."""
    vae, x = small_vae(), images(3)
    encoder = sum(p.numel() for p in vae.posterior.parameters())
    variances = [gradients(o, vae, x, 200)[:, -encoder:].var(0).sum() for o in (IWAE(50), DReG(50))]
    assert variances[0] > 1.5 * variances[1]


def test_bounds_are_ordered() -> None:
    """ELBO <= Renyi(alpha) <= IWAE for the same particles, with equality in the limits."""
    vae, x = small_vae(), images(50)
    ELBO(5).loss(vae.model, vae.guide, x)

    def bound(objective: Objective) -> Tensor:
        pyro.set_rng_seed(3)
        return objective.bounds(vae.model, vae.guide, x)[0]

    curve = [bound(ELBO(5)), *(bound(Renyi(5, alpha)) for alpha in (0.999_999, 0.75, 0.5, 0.25, 0.0)), bound(IWAE(5))]
    for lower, upper in pairwise(curve):
        assert (lower <= upper + 1e-9).all()
    torch.testing.assert_close(curve[1], curve[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(curve[-2], curve[-1])


@pytest.mark.parametrize("alpha", [-0.5, 1.0, 2.0, math.nan])
def test_renyi_rejects_orders_without_a_lower_bound(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha is"):
        Renyi(2, alpha)


def test_beta_weights_the_rate_and_the_true_elbo_is_reported() -> None:
    vae, x = small_vae(), images(6)
    ELBO(4).loss(vae.model, vae.guide, x)
    found = {}
    for beta in (0.0, 1.0, 3.0):
        pyro.set_rng_seed(4)
        found[beta], elbo = BetaELBO(4, beta).bounds(vae.model, vae.guide, x)
        pyro.set_rng_seed(4)
        torch.testing.assert_close(elbo, ELBO(4).bounds(vae.model, vae.guide, x)[1])
    torch.testing.assert_close(found[1.0], elbo, check_dtype=False)
    torch.testing.assert_close(found[3.0] - found[1.0], 2 * (found[1.0] - found[0.0]))


def test_beta_warms_up_linearly() -> None:
    objective = BetaELBO(1, 4.0, warmup_steps=3)
    seen = []
    for step in range(6):
        objective.set_step(step)
        seen.append(objective.beta.item())
    assert seen == [1.0, 2.0, 3.0, 4.0, 4.0, 4.0]


def test_analytic_kl_has_the_expectation_of_the_sampled_one() -> None:
    """Equal expectations over 400 repeats, level 1e-4; the rate has no noise from z."""
    vae, x = small_vae(), images(3).repeat(400, 1, 1)
    values = [objective.bounds(vae.model, vae.guide, x)[0].detach() for objective in (MeanFieldELBO(5), ELBO(5))]
    difference = (values[0] - values[1]).view(400, 3).sum(1)
    assert difference.mean().abs() < norm.isf(5e-5) * difference.std() / 20


def test_analytic_kl_is_rejected_if_undefined() -> None:
    vae, x = small_vae(), images(3)
    vae.prior = GaussianMixture(2, 3)
    with pytest.raises(ValueError, match="No closed form"):
        MeanFieldELBO().loss(vae.model, vae.guide, x)
    deep = two_layer()
    with pytest.raises(ValueError, match="this program has 2"):
        MeanFieldELBO().loss(deep.model, deep.guide, x)


def test_two_layer_program_matches_quadrature() -> None:
    """log p(x) by the trapezoidal rule over z2 and z1; 8 images at 4 s.e., false alarms 5e-4 in all."""
    program = two_layer()
    with torch.no_grad():
        for p in program.parameters():
            p.add_(0.3 * torch.randn_like(p))
        for encoder in (program.posterior, program.top_posterior):  # a guide that ignores x and is wide enough
            for p in encoder.parameters():
                p.zero_()
        program.posterior.net[1][-1].bias.fill_(0.5)
        program.top_posterior.net[-1].bias.fill_(0.5)
        # p(z1|z2) is narrower than the guide at every z2, because tanh is bounded: then the weights are bounded.
        last = program.generator.net[-1]
        last.weight.mul_(0.3 / last.weight.abs().sum(1, keepdim=True))
        last.bias.zero_()
        x = images(8)
        axis = torch.linspace(-12, 12, 1601)
        z2 = axis.unsqueeze(1)
        log_z2 = program.prior().log_prob(z2)
        generated = program.generator(z2)
        log_z1 = (log_z2.unsqueeze(1) + generated.base_dist.log_prob(axis)).logsumexp(0)  # (z2, z1), summed over z2
        log_x = program.likelihood(z2).log_prob(x.unsqueeze(1))
        truth = (log_z1 + log_x).logsumexp(1) + 2 * math.log(axis[1] - axis[0])
    scores = score(program.model, program.guide, x, 20_000, seed=0)
    error = torch.as_tensor(scores.log_likelihood) - truth.cpu()
    assert (error.abs() < 4 * torch.as_tensor(scores.relative_variance).sqrt()).all()
