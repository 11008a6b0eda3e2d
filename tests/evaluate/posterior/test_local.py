"""Posteriors of single images: the optima that theory predicts, and the flow's Jacobian."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.oracles import LinearGaussian
from helpers.programs import images, small_vae

from pyro_vae.evaluate import per_image_elbos, score
from pyro_vae.evaluate.posterior.families import FAMILIES


def test_full_gaussian_closes_the_amortization_gap() -> None:
    """A guide of 1.5 times the variance, D = 3: the exact posterior is in the family, 50 images to 0.01 nats."""
    program = LinearGaussian(3, variance_ratio=1.5)
    x = program.simulate(50)
    found = per_image_elbos(program.model, program.guide, x, ["full"], seed=0)
    truth = program.log_evidence(x).cpu().numpy()
    np.testing.assert_allclose(found["full"], truth, atol=0.01)
    # The gap of the amortized guide is its known KL, up to the noise of 1,000 draws of 50 images.
    assert (truth - found["amortized"]).mean() == pytest.approx(program.gap, abs=0.02)


def test_diagonal_gaussian_reaches_the_mean_field_optimum() -> None:
    """Its gap is the KL of the best mean field, (sum log P_ii - log det P) / 2; a flow has a smaller gap."""
    program = LinearGaussian(3, variance_ratio=1.5)
    x = program.simulate(20)
    found = per_image_elbos(program.model, program.guide, x, ["diagonal", "flow"], num_samples=2000, seed=0)
    truth = program.log_evidence(x).cpu().numpy()
    precision = program.covariance.inverse()
    gap = float((precision.diagonal().log().sum() - precision.logdet()) / 2)
    assert gap > 0.1
    # The ELBO of 2,000 draws of 20 images has an error of about 0.002; the optimum is flat.
    assert (truth - found["diagonal"]).mean() == pytest.approx(gap, abs=0.01)
    assert -0.005 < (truth - found["flow"]).mean() < 0.5 * gap


def test_elbos_increase_with_the_family_and_stay_below_log_p() -> None:
    vae, x = small_vae(), images(10)
    with torch.no_grad():
        for p in vae.likelihood.parameters():
            p.add_(0.5 * torch.randn_like(p))
    found = per_image_elbos(vae.model, vae.guide, x, ["diagonal", "full", "flow"], num_samples=2000, seed=0)
    scores = score(vae.model, vae.guide, x, 20_000, seed=0)
    error = np.sqrt(scores.relative_variance)
    means = [found[name].mean() for name in ("amortized", "diagonal", "full")]
    assert means[0] < means[1] < means[2] + 0.01
    for name in ("diagonal", "full", "flow"):
        assert (found[name] < scores.log_likelihood + 0.03 + 4 * error).all()
    assert all(p.grad is None for p in vae.parameters())


@pytest.mark.parametrize("dim", [2, 5])
def test_coupling_flow_inverts_and_its_jacobian_matches_autograd(dim: int) -> None:
    make, start = FAMILIES["flow"]
    parameters = [p + 0.5 * torch.randn_like(p) for p in start(torch.zeros(3, dim))]
    q = make(parameters)
    transform = torch.distributions.ComposeTransform(q.transforms)
    u = torch.randn(1, 3, dim)
    v = transform(u)
    torch.testing.assert_close(transform.inv(v), u)
    jacobian = torch.autograd.functional.jacobian(transform, u)
    expected = torch.stack([jacobian[0, i, :, 0, i].slogdet()[1] for i in range(3)])
    torch.testing.assert_close(transform.log_abs_det_jacobian(u, v)[0], expected)
    assert (v != u).all()  # some coupling moves every unit


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_starts_at_the_amortized_posterior(family: str) -> None:
    make, start = FAMILIES[family]
    u = torch.randn(4, 3, 2)
    found = make(start(torch.zeros(3, 2))).log_prob(u)
    torch.testing.assert_close(found, -0.5 * u.square().sum(-1) - math.log(2 * math.pi))


def test_invalid_families_are_rejected() -> None:
    program = LinearGaussian(1)
    x = torch.zeros(2, 7)
    with pytest.raises(ValueError, match="Unknown family 'cubic'"):
        per_image_elbos(program.model, program.guide, x, ["cubic"])
    with pytest.raises(ValueError, match="at least two latent units"):
        per_image_elbos(program.model, program.guide, x, ["flow"])
