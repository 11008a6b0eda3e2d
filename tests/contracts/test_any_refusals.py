"""Third-party programs without a valid result: the error or `reason` is one line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.any_program import SHORT, Small, binary
from helpers.oracles import LinearGaussian
from torch import Tensor, nn

from pyro_vae import ELBO, score
from pyro_vae.evaluate import AISConfig, ais
from pyro_vae.trace import trace_particles


def test_value_that_would_broadcast_against_its_event_is_rejected() -> None:
    """One image of (4, 4) under an event of (1, 4, 4) would sum over all images of the batch."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            logits = z[..., None, None].expand(*z.shape[:-1], 1, 4, 4)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(3), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))

    with pyro.validation_enabled(False):
        for call in (lambda x: score(model, guide, x, 5), lambda x: ELBO().loss(model, guide, x)):
            with pytest.raises(ValueError, match=r"Site 'x' has a value of shape \(6, 4, 4\).*event shape \(1, 4, 4\)"):
                call(binary(6, 4, 4))


def test_two_indistinguishable_plates_of_the_batch_size_are_rejected() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("a", 3, dim=-1), pyro.plate("b", 3, dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"both have the size of the batch"):
        trace_particles(model, torch.zeros(3, 3))


def test_plate_that_subsamples_x_is_rejected() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=2) as rows:
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x[rows])

    with pytest.raises(ValueError, match="'data' draws 2 of the 6 rows of x by itself"):
        ELBO().loss(model, lambda x: None, torch.zeros(6))


def test_draw_outside_the_support_of_the_prior_gives_a_reason() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Exponential(1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    found = score(model, guide, torch.zeros(3), 50, seed=0)
    assert found.reason == "the guide draws 'z' outside the support of its prior"
    assert np.isnan(found.log_likelihood).all()


def test_score_that_depends_on_other_images_is_rejected() -> None:
    program = Small()
    norm = nn.BatchNorm1d(6, track_running_stats=False)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=norm(program.dec(z))).to_event(1), obs=x)

    with pytest.raises(ValueError, match="log-density of an image at site 'x' depends on the other images"):
        score(model, program.guide, binary(5, 6), 10, seed=0)


def test_float32_underflow_at_the_edge_of_the_support_is_rejected() -> None:
    """Dirichlet-multinomial, where guide and prior put much of their mass near the corners."""
    alpha = torch.tensor([0.05, 0.3, 1.0, 0.05])
    x = torch.tensor([[10.0, 0, 0, 0], [0, 4, 6, 0], [0, 0, 10, 0], [1, 2, 3, 4]])

    def programs(dtype: torch.dtype) -> tuple[Any, Any, Tensor]:
        a, counts = alpha.to(dtype), x.to(dtype)

        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                theta = pyro.sample("theta", dist.Dirichlet(a))
                pyro.sample("x", dist.Multinomial(10, theta, validate_args=False), obs=x)

        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("theta", dist.Dirichlet(0.5 * (a + x)))

        return model, guide, counts

    with pytest.raises(ValueError, match="near the edge of their support"):
        ais(*programs(torch.float32), AISConfig(32, 50, 3), seed=0)


def test_guide_with_new_noise_at_every_call_cannot_start_annealing() -> None:
    program = LinearGaussian(2)
    x = program.simulate(4)

    def guide(x: Tensor) -> None:
        program.guide(x + torch.randn_like(x))

    with pytest.raises(ValueError, match="changes from call to call"):
        ais(program.model, guide, x, replace(SHORT, start="guide"), seed=0)
    assert np.isfinite(ais(program.model, guide, x, AISConfig(4, 10, 2, start="prior"), seed=0).lower).all()
