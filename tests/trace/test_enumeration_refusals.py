"""Enumeration: latents that cannot be summed out, and losses and weights that do not support it, are rejected."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.discrete import no_latents, pair
from pyro import poutine
from torch import Tensor

from pyro_vae import ELBO, log_weights
from pyro_vae.infer import FreeBits, MeanFieldELBO


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
def test_latents_that_cannot_be_summed_out_are_rejected(model: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        log_weights(model, no_latents, torch.randn(4), 1)
    with pytest.raises(ValueError, match=message):
        ELBO().bounds(model, no_latents, torch.randn(4))


def test_differing_scales_are_rejected_in_the_loss_and_ignored_in_weights() -> None:
    model, x = _with(dist.Bernoulli(0.5), scale=0.5), torch.randn(4)
    with pytest.raises(ValueError, match="different scales"):
        ELBO().bounds(model, no_latents, x)
    right = (dist.Normal(0.0, 1.0).log_prob(x).exp() / 2 + dist.Normal(1.0, 1.0).log_prob(x).exp() / 2).log()
    torch.testing.assert_close(log_weights(model, no_latents, x, 1)[0], right.double(), rtol=1e-12, atol=1e-12)


def test_factor_with_enumerated_latents_is_not_a_density() -> None:
    model = _with(dist.Bernoulli(0.5), factor=True)
    with pytest.raises(ValueError, match="is not a density"):
        ELBO().bounds(model, no_latents, torch.randn(4))
    assert log_weights(model, no_latents, torch.randn(4), 1).isnan().all()


def test_values_that_depend_on_another_latent_are_rejected() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            n = pyro.sample("n", dist.Categorical(torch.ones(3)))
            c = pyro.sample("c", dist.Binomial(n + 1.0, torch.full((len(x),), 0.5)))
            pyro.sample("x", dist.Normal(c, 1.0), obs=x)

    with pytest.raises(ValueError, match="depend on other latents"):
        log_weights(model, no_latents, torch.randn(1), 1, seed=0)


@pytest.mark.parametrize("objective", [MeanFieldELBO, FreeBits])
def test_objectives_that_need_a_prior_name_what_is_missing(objective: Any) -> None:
    explicit, _ = pair()
    with pytest.raises(ValueError, match="'c' is summed out"):
        objective().bounds(explicit.model, explicit.guide, torch.randn(5, 6))
