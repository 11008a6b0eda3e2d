"""Annealed importance sampling and BDMC, against closed forms and quadrature."""

from __future__ import annotations

import logging
import math
import re

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.calls import one_line
from helpers.oracles import BernoulliDecoder, LinearGaussian
from helpers.programs import images, small_vae
from scipy.stats import ks_1samp, norm
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.evaluate import AISConfig, AISResult, ais, bdmc, log_weights, sbc_ranks, score
from pyro_vae.evaluate.annealing.gaussians import Scales
from pyro_vae.evaluate.annealing.hmc import HMC
from pyro_vae.evaluate.annealing.paths import STARTS, AnnealingPath
from pyro_vae.evaluate.annealing.pilot import adapt_chains
from pyro_vae.evaluate.annealing.schedules import FIXED_SCHEDULES, SCHEDULES
from pyro_vae.trace import read_only, simulate
from pyro_vae.trace.graphs import drawn_first


def se(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values)))


@pytest.mark.parametrize(
    ("latent_dim", "start", "ratio", "num_temperatures"),
    [
        *((d, "prior", 1.0, 600) for d in (1, 2, 5)),
        *((d, "guide", 1.5, 300) for d in (1, 2, 5)),
        *((d, "gaussian", 1.5, 100) for d in (1, 2, 5)),
        pytest.param(20, "guide", 1.5, 1000, marks=pytest.mark.slow),
    ],
)
def test_ais_estimates_log_p_of_the_linear_gaussian_program(
    latent_dim: int, start: str, ratio: float, num_temperatures: int
) -> None:
    """Mean over 100 images within 0.05 nats; its standard error at these numbers of temperatures is 0.01 or less."""
    program = LinearGaussian(latent_dim, variance_ratio=ratio)
    x = program.simulate(100)
    settings = AISConfig(num_chains=16, num_temperatures=num_temperatures, num_leapfrogs=1, start=start)
    found = ais(program.model, program.guide, x, settings, seed=0).lower
    errors = found - program.log_evidence(x).cpu().numpy()
    assert se(errors) < 0.01
    assert errors.mean() == pytest.approx(0.0, abs=0.05)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_weights_are_unbiased_in_both_directions_with_few_temperatures(start: str, schedule: str) -> None:
    """E[w] = p(x) forward and E[1/w] = 1/p(x) backward: 20,000 chains, 4 temperatures, 3 images at 4 s.e.

    False alarms 4e-4 for each of the nine cases.
    """
    # A posterior close to the prior and to the guide: weights with heavy tails have no useful standard error.
    program = LinearGaussian(2, noise=40.0, variance_ratio=1.1)
    with read_only(program.model, program.guide, x=program.bias, seed=5):
        x, values = simulate(program.model, torch.zeros(3, 7))
        path = AnnealingPath(program.model, program.guide, x, start)
        chains = adapt_chains(path, schedule, 4, 3, iter)
        forward = chains.forward(chains.path.draw(20_000), iter).log_w
        # Each chain gets its own exact draw, so that the backward weights are independent.
        mean, scale = program.posterior_mean(x), torch.linalg.cholesky(program.covariance)
        exact = dist.MultivariateNormal(mean, scale_tril=scale).sample((20_000,))
        backward = chains.backward(exact, iter).log_w
    truth = program.log_evidence(x)
    assert values["z"].shape == (1, 3, 2)
    for ratio in ((forward - truth).exp(), (truth - backward).exp()):
        error = ratio.std(0) / math.sqrt(20_000)
        assert ((ratio.mean(0) - 1).abs() < 4 * error).all()


def test_kernel_leaves_its_distribution_invariant() -> None:
    """Exact draws from the Gaussian f_b, moved ten times: Kolmogorov-Smirnov per whitened unit, level 1e-4 in all."""
    program = LinearGaussian(2, variance_ratio=1.5)
    x, b = program.simulate(1), 0.4
    precision = (1 - b) * (1.5 * program.covariance).inverse() + b * program.covariance.inverse()
    f_b = dist.MultivariateNormal(program.posterior_mean(x), precision_matrix=precision)
    with read_only(program.model, program.guide, x=x, seed=0):
        path = AnnealingPath(program.model, program.guide, x, "guide")
        skewed = program.scale_tril @ torch.tensor([[[1.0, 0.0], [0.5, 0.8]]])
        kernel = HMC(path, Scales(skewed, torch.tensor([[0.7, 2.0]])), 5)
        point = path.evaluate(f_b.sample((5_000,)))
        start = point.u
        for _ in range(10):
            point, acceptance = kernel.move(point, b, torch.full((1,), 0.7))
    assert 0.5 < acceptance.item() < 1
    assert (point.u != start).any(-1).all()
    white = torch.linalg.solve_triangular(f_b.scale_tril, (point.u - f_b.mean).unsqueeze(-1), upper=False)[:, 0, :, 0]
    for unit in range(2):
        assert ks_1samp(white[:, unit].cpu(), norm.cdf).pvalue > 5e-5


def test_bdmc_bounds_bracket_the_truth() -> None:
    """Simulated images of the linear-Gaussian program: bounds on the correct sides within 4 s.e., and close."""
    program = LinearGaussian(5, variance_ratio=1.5)
    settings = AISConfig(num_chains=8, num_temperatures=200, num_leapfrogs=3)
    found = bdmc(program.model, program.guide, torch.zeros(200, 7), settings, seed=1)
    with read_only(program.model, program.guide, x=torch.zeros(200, 7), seed=1, purpose="bidirectional"):
        x, _ = simulate(program.model, torch.zeros(200, 7))
    truth = program.log_evidence(x).cpu().numpy()
    low, high = truth - found.forward.lower, found.backward.upper - truth
    assert low.mean() > -4 * se(low)
    assert high.mean() > -4 * se(high)
    assert -4 * se(found.gap) < found.gap.mean() < 0.1
    np.testing.assert_allclose(found.gap, low + high)


def test_ais_lies_between_the_iwae_bound_and_the_upper_bound() -> None:
    """A Bernoulli decoder by quadrature and a guide that ignores x, 200 simulated images, 4 s.e. of each mean."""
    program = BernoulliDecoder(2)
    for parameter in program.parameters():
        parameter.data.mul_(2.0)  # posteriors far from the guide
    like = torch.zeros(200, 6)
    found = bdmc(program.model, program.guide, like, AISConfig(5, 300, 3), seed=2)
    with read_only(program.model, program.guide, x=like, seed=2, purpose="bidirectional"):  # the same images
        x, _ = simulate(program.model, like)
    truth = program.log_evidence(x).cpu().numpy()
    scores = score(program.model, program.guide, x, 250, seed=0)
    importance = scores.iwae[scores.particle_counts.index(5)]  # mean of 50 estimates
    for lower, upper in ((found.forward.lower, truth), (truth, found.backward.upper)):
        assert (upper - lower).mean() > -4 * se(upper - lower)
    gain = found.forward.lower - importance
    assert gain.mean() > 4 * se(gain)
    assert found.gap.mean() < 0.05


@pytest.mark.usefixtures("short_annealing")
def test_annealing_is_read_only_and_repeatable() -> None:
    vae, x = small_vae(), images(4)
    before = {name: p.clone() for name, p in vae.named_parameters()}
    stream = torch.get_rng_state()
    first, second, other = (ais(vae.model, vae.guide, x, AISConfig(4, 5, 2), seed=seed).log_w for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, second)
    assert (first != other).all()
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in vae.named_parameters())
    assert not list(pyro.get_param_store())


def test_estimates_for_given_weights() -> None:
    """Two chains of weights 1 and 3: mean 2, harmonic mean 1.5, ESS 16 / 10."""
    result = AISResult(np.log([[1.0], [3.0]]), np.ones(1), 2)
    np.testing.assert_allclose(np.exp(result.lower), 2.0)
    np.testing.assert_allclose(np.exp(result.upper), 1.5)
    np.testing.assert_allclose(result.ess, 1.6)
    joined = AISResult.concatenate([result, result])
    np.testing.assert_array_equal(joined.lower, [result.lower[0]] * 2)


@pytest.mark.parametrize("schedule", FIXED_SCHEDULES)
def test_temperatures_rise_from_zero_to_one(schedule: str) -> None:
    b = FIXED_SCHEDULES[schedule](7)
    assert (len(b), b[0], b[-1]) == (8, 0, 1)
    assert (b.diff() > 0).all()
    torch.testing.assert_close(b.flip(0), 1 - b)  # symmetric


def test_invalid_programs_and_settings_are_rejected() -> None:
    def discrete(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("digit", dist.Categorical(logits=torch.zeros(3)))

    def nothing(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    x = torch.zeros(3)
    with pytest.raises(ValueError, match="'digit' is discrete"):
        ais(discrete, discrete, x, AISConfig())
    with pytest.raises(ValueError, match="no sampled latent site"):
        ais(nothing, lambda x: None, x, AISConfig())
    vae = small_vae()
    with pytest.raises(ValueError, match="outside the support"):
        ais(vae.model, vae.guide, torch.full((2, 3, 2), 0.5), AISConfig())
    with pytest.raises(ValueError, match="num_chains is 0"):
        AISConfig(num_chains=0)
    with pytest.raises(ValueError, match="start is 'middle'"):
        AISConfig(start="middle")


def test_model_that_observes_a_transform_of_x_is_not_simulated() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("half", dist.Normal(z, 1.0), obs=x[:, 0] / 2)

    with pytest.raises(ValueError, match="do not hold each element of its argument x"):
        simulate(model, torch.zeros(3, 1))


@pytest.mark.parametrize(("size", "parameters"), [((2,), (1,)), ((2, 3), (1, 1)), ((2, 3), (1, 3)), ((2, 3), (2, 1))])
def test_likelihood_that_broadcasts_against_x_is_not_simulated(size: tuple[int, ...], parameters: tuple) -> None:
    """One rate for several pixels scores them, but a sample has one pixel: refused in one line by all that simulate."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            rate = pyro.sample("rate", dist.Gamma(torch.tensor(2.0), torch.tensor(1.0)))
            rates = rate.reshape(*rate.shape, *[1] * len(size)).expand(*rate.shape, *parameters)
            pyro.sample("x", dist.Poisson(rates).to_event(len(size)), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("rate", dist.Gamma(2 + x.flatten(1).sum(1), torch.tensor(3.0)))

    template = torch.zeros(4, *size)
    expected = re.escape(f"'x' observes {(4, *size)} under a distribution of {(4, *parameters)}")
    for simulated in (
        lambda: simulate(model, template),
        lambda: bdmc(model, guide, template, AISConfig(2, 2, 1), seed=0),
        lambda: sbc_ranks(model, guide, template, seed=0),
    ):
        with pytest.raises(UserError, match=expected) as caught:
            simulated()
        assert one_line(caught.value)


@pytest.mark.usefixtures("short_annealing")
@pytest.mark.parametrize("start", STARTS)
def test_compiled_annealing_gives_the_same_weights(start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorded graph runs instead of the compiled one; both use the same noise."""
    monkeypatch.setattr(drawn_first, "compile_graph", lambda record, inputs: record)
    vae = small_vae()
    x = torch.bernoulli(torch.full((3, 3, 2), 0.5))
    plain, compiled = (
        ais(vae.model, vae.guide, x, AISConfig(4, 8, 2, start, compiled=compiled), seed=0) for compiled in (False, True)
    )
    assert compiled.log_w == pytest.approx(plain.log_w, abs=1e-9)
    assert compiled.acceptance == pytest.approx(plain.acceptance, abs=1e-9)


@pytest.mark.usefixtures("short_annealing")
def test_annealing_falls_back_to_eager_execution(caplog: pytest.LogCaptureFixture) -> None:
    vae = small_vae()
    vae.likelihood.net.register_forward_hook(lambda net, args, out: out if out.sum() < 1e9 else 0 * out)
    x = torch.bernoulli(torch.full((3, 3, 2), 0.5))
    with caplog.at_level(logging.WARNING):
        plain, compiled = (
            ais(vae.model, vae.guide, x, AISConfig(4, 5, 2, compiled=compiled), seed=0) for compiled in (False, True)
        )
    assert (compiled.log_w == plain.log_w).all()
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("Annealing is not compiled: it reads values off a tensor (bool)")


def test_simulated_images_have_exact_posterior_draws() -> None:
    """The latents of simulated images, whitened by the exact posterior: Kolmogorov-Smirnov, level 1e-4."""
    program = LinearGaussian(1)
    with read_only(program.model, x=program.bias, seed=0):
        x, values = simulate(program.model, torch.zeros(5_000, 7))
    white = (values["z"][0] - program.posterior_mean(x)) / program.covariance.sqrt()
    assert ks_1samp(white[:, 0].cpu(), norm.cdf).pvalue > 1e-4
    weights = log_weights(program.model, program.guide, x[:5], 3, seed=0)
    torch.testing.assert_close(weights, program.log_evidence(x[:5]).expand(3, 5))
