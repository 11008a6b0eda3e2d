"""Rate-distortion curves of annealing from the prior, against the closed form of the linear-Gaussian program."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.oracles import LinearGaussian
from torch import Tensor

from pyro_vae.evaluate import CURVE_TEMPERATURES, AISConfig, ais


def closed_form(program: LinearGaussian, x: Tensor, b: float) -> tuple[Tensor, Tensor]:
    """Return rate and distortion of each image for the optimal encoder p(z) p(x|z)^b / Z, a Gaussian."""
    weight, noise = program.weight, program.noise
    covariance = (torch.eye(program.latent_dim) + b * weight.T @ weight / noise).inverse()
    mean = b * (x - program.bias) @ weight @ covariance / noise
    rate = 0.5 * (covariance.trace() + mean.square().sum(1) - program.latent_dim - covariance.logdet())
    error = (x - program.bias - mean @ weight.T).square().sum(1) + (weight @ covariance @ weight.T).trace()
    return rate, 0.5 * error / noise + 0.5 * x.shape[1] * math.log(2 * math.pi * noise)


def curves(num_chains: int, num_temperatures: int) -> tuple[np.ndarray, ...]:
    """Return estimated and exact rates and distortions (21, N) of 200 images."""
    program = LinearGaussian(2)
    x = program.simulate(200)
    settings = AISConfig(num_chains, num_temperatures, 3, "prior")
    curve = ais(program.model, program.guide, x, settings, seed=0).curve
    assert curve is not None
    rate, distortion = (
        torch.stack(values).cpu().numpy()
        for values in zip(*(closed_form(program, x, b) for b in CURVE_TEMPERATURES), strict=True)
    )
    return curve.rate, curve.distortion, rate, distortion


def standard_error(values: np.ndarray) -> np.ndarray:
    return values.std(1, ddof=1) / math.sqrt(values.shape[1])


def test_curve_is_the_closed_form_for_many_chains_and_temperatures() -> None:
    """Means over 200 images, within 4 s.e. and 0.05 nats: 42 comparisons, false alarms 3e-3 at most.

    At b = 0, distortions are means over samples of the prior, far apart; they are compared by their s.e. alone.
    """
    rate, distortion, exact_rate, exact_distortion = curves(64, 100)
    for error in (rate - exact_rate, distortion - exact_distortion):
        assert (np.abs(error.mean(1)) < 4 * standard_error(error) + 0.05).all()
    np.testing.assert_array_equal(rate[0], 0)


def test_rate_is_an_upper_bound_with_few_chains_and_temperatures() -> None:
    """R + b D >= min of rate + b distortion over all encoders, which is that of the closed form: 4 s.e. at each b.

    False alarms 3e-5 for each of 20 temperatures. With three chains and ten temperatures, the bound is not tight.
    """
    rate, distortion, exact_rate, exact_distortion = curves(3, 10)
    b = CURVE_TEMPERATURES[:, None]
    excess = (rate + b * distortion - exact_rate - b * exact_distortion)[1:]
    assert (excess.mean(1) > -4 * standard_error(excess)).all()
    assert excess[-1].mean() > 4 * standard_error(excess)[-1]


def test_curve_ends_at_the_bound_on_log_p() -> None:
    program = LinearGaussian(2)
    found = ais(program.model, program.guide, program.simulate(5), AISConfig(4, 10, 2, "prior"), seed=0)
    assert found.curve is not None
    assert -(found.curve.rate + found.curve.distortion)[-1] == pytest.approx(found.lower)
    other = ais(program.model, program.guide, program.simulate(5), AISConfig(4, 10, 2, "guide"), seed=0)
    assert other.curve is None
