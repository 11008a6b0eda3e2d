"""Objectives against Pyro's estimators, closed forms and finite differences."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.oracles import BernoulliDecoder, LinearGaussian
from helpers.programs import ConvProgram, images, small_vae
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from pyro_vae.infer import ELBO, IWAE, BetaELBO, MeanFieldELBO, Objective, Renyi
from pyro_vae.model import VAE


@pytest.mark.parametrize("num_particles", [2, 5, 50])
def test_iwae_equals_the_renyi_bound_of_order_zero(num_particles: int) -> None:
    vae, x = small_vae(), images(7)
    renyi = RenyiELBO(alpha=0, num_particles=num_particles, max_plate_nesting=1, vectorize_particles=True)
    ELBO(num_particles).bounds(vae.model, vae.guide, x)  # the layout is probed on the first call
    pyro.set_rng_seed(1)
    expected = renyi.loss(vae.model, vae.guide, x)
    pyro.set_rng_seed(1)
    found = IWAE(num_particles).loss(vae.model, vae.guide, x)
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_iwae_gradient_equals_that_of_renyi() -> None:
    vae, x = small_vae(), images(7)
    gradients = []
    for objective in (
        RenyiELBO(alpha=0, num_particles=5, max_plate_nesting=1, vectorize_particles=True),
        IWAE(5),
    ):
        pyro.set_rng_seed(1)
        objective.loss_and_grads(vae.model, vae.guide, x)
        gradients.append([p.grad.clone() for p in vae.parameters()])
        vae.zero_grad()
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_bounds_coincide_for_one_particle() -> None:
    vae, x = small_vae(), images(7)
    losses = []
    for objective in (ELBO(), IWAE(), Trace_ELBO()):
        pyro.set_rng_seed(1)
        losses.append(float(objective.loss(vae.model, vae.guide, x)))
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)
    assert losses[2] == pytest.approx(losses[0], rel=1e-12)


def test_elbo_agrees_with_the_analytic_kl() -> None:
    """Means over 2,000 particles at 4 s.e. of their difference, estimated from 20 groups."""
    vae, x = small_vae(), images(4)
    analytic = TraceMeanField_ELBO(num_particles=100, max_plate_nesting=1, vectorize_particles=True)
    differences = torch.tensor(
        [float(ELBO(100).loss(vae.model, vae.guide, x)) - analytic.loss(vae.model, vae.guide, x) for _ in range(20)]
    )
    assert differences.mean().abs() < 4 * differences.std() / math.sqrt(20)


@pytest.mark.parametrize("objective", [ELBO(3), IWAE(3), MeanFieldELBO(3)])
def test_gradients_match_finite_differences(objective: Objective) -> None:
    """To 1e-6, absolute, for losses of about 10 nats."""
    vae, x = small_vae(), images(3)
    names, values = zip(*vae.named_parameters(), strict=True)

    def loss(*parameters: Tensor) -> Tensor:
        pyro.clear_param_store()
        with torch.random.fork_rng():
            torch.manual_seed(2)
            swapped = {f"vae.{name}": p for name, p in zip(names, parameters, strict=True)}
            return torch.func.functional_call(Loss(vae, objective), swapped, x)

    assert torch.autograd.gradcheck(loss, values, eps=1e-5, atol=1e-6, rtol=0)


class Loss(nn.Module):
    def __init__(self, vae: VAE, objective: Objective) -> None:
        super().__init__()
        self.vae, self.objective = vae, objective

    def forward(self, x: Tensor) -> Tensor:
        return self.objective.differentiable_loss(self.vae.model, self.vae.guide, x)


def test_bounds_of_the_linear_gaussian_program() -> None:
    """ELBO = log p(x) - KL, and IWAE lies between; 4 s.e. over 500 images."""
    program = LinearGaussian(2, variance_ratio=2.0)
    x = program.simulate(500)
    truth = program.log_evidence(x)
    iwae, elbo = IWAE(10).bounds(program.model, program.guide, x)
    gap = truth - elbo
    assert (gap.mean() - program.gap).abs() < 4 * gap.std() / math.sqrt(500)
    assert elbo.mean() < iwae.mean() < truth.mean()


def test_exact_posterior_makes_every_bound_log_evidence() -> None:
    """All weights are p(x), so that only division by a number other than K could change a bound."""
    program = LinearGaussian(2)
    x = program.simulate(3)
    truth = program.log_evidence(x)
    for num_particles in range(1, 13):
        for objective in (ELBO(num_particles), IWAE(num_particles), Renyi(num_particles, 0.5)):
            for bound in objective.bounds(program.model, program.guide, x):
                torch.testing.assert_close(bound, truth, rtol=0, atol=1e-12)


def test_row_layout_matches_stock_gradients() -> None:
    """A net without a particle dimension: stock Pyro loops over particles, ours repeats rows."""
    program, x = ConvProgram(), torch.bernoulli(torch.full((6, 4, 4), 0.5))
    errors = torch.tensor(
        [
            float(ELBO(50).loss(program.model, program.guide, x))
            - Trace_ELBO(num_particles=50).loss(program.model, program.guide, x)
            for _ in range(10)
        ]
    )
    assert errors.mean().abs() < 4 * errors.std() / math.sqrt(10)


def test_latent_without_reparameterized_gradient_is_rejected() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Bernoulli(0.5))

    with pytest.raises(ValueError, match=r"Guide site 'z' \(Bernoulli\) has no reparameterized"):
        ELBO().differentiable_loss(model, guide, torch.zeros(3))
    assert ELBO().loss(model, guide, torch.zeros(3)).isfinite()  # the value itself needs no gradient


@pytest.mark.parametrize("objective", [IWAE(3), Renyi(3)])
def test_scale_of_one_site_is_rejected_unless_sites_are_summed(objective: Objective) -> None:
    program, x = LinearGaussian(1), torch.zeros(3, 7)
    half = poutine.scale(program.model, scale=0.5)
    with pytest.raises(ValueError, match="has a separate scale"):
        objective.loss(half, program.guide, x)


@pytest.mark.parametrize("objective", [ELBO(3), IWAE(3), BetaELBO(3, 2.0), MeanFieldELBO(3)])
def test_scale_of_all_sites_multiplies_the_loss_but_not_the_elbo(objective: Objective) -> None:
    vae, x = small_vae(), images(3)
    both = [poutine.scale(program, scale=7.0) for program in (vae.model, vae.guide)]
    pyro.set_rng_seed(1)
    expected, elbo = objective.bounds(vae.model, vae.guide, x)
    pyro.set_rng_seed(1)
    found, same = objective.bounds(*both, x)
    torch.testing.assert_close(found, 7 * expected)
    torch.testing.assert_close(same, elbo)


def test_gray_pixels_are_rejected_before_the_first_step() -> None:
    vae = small_vae()
    with pytest.raises(ValueError, match=r"observes 0.5, outside the support of its Bernoulli"):
        ELBO().loss(vae.model, vae.guide, torch.full((2, 3, 2), 0.5))


def test_zero_particles_are_rejected() -> None:
    with pytest.raises(ValueError, match="num_particles is 0"):
        IWAE(0)


def with_global(program: BernoulliDecoder) -> tuple[Any, Any]:
    def model(x: Tensor) -> None:
        pyro.sample("theta", dist.Normal(0.0, 1.0))
        program.model(x)

    def guide(x: Tensor) -> None:
        pyro.sample("theta", dist.Normal(0.5, 1.0))
        program.guide(x)

    return model, guide


def test_global_latent_trains_as_in_stock_pyro() -> None:
    programs, x = with_global(BernoulliDecoder(1)), torch.zeros(3, 6)
    pyro.set_rng_seed(1)
    expected = Trace_ELBO().loss(*programs, x)
    pyro.set_rng_seed(1)
    torch.testing.assert_close(float(ELBO().loss(*programs, x)), expected)


def test_per_image_objective_names_a_global_latent() -> None:
    with pytest.raises(ValueError, match="Site 'theta' is shared by all images"):
        IWAE(2).loss(*with_global(BernoulliDecoder(1)), torch.zeros(3, 6))


@pytest.mark.parametrize("num_particles", [1, 3])
@pytest.mark.parametrize("kind", ["pixels", "images"])
def test_support_check_respects_masks(kind: str, num_particles: int) -> None:
    """Masked gray pixels are accepted under a Bernoulli, others are rejected, with Pyro's validation on."""
    mask = torch.tensor([True, False, True, True])
    pixels = mask.view(4, 1).expand(4, 4) if kind == "images" else mask.expand(4, 4)

    def model(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            each = dist.Bernoulli(logits=z, validate_args=False)
            masked = each.to_event(1).mask(mask) if kind == "images" else each.mask(mask).to_event(1)
            pyro.sample("x", masked, obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))

    x = torch.where(pixels, 1.0, 0.5)
    assert IWAE(num_particles).loss(model, guide, x).isfinite()
    x[0, 2] = 0.5
    with pytest.raises(ValueError, match="outside the support"):
        IWAE(num_particles).loss(model, guide, x)
