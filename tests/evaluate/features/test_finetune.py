"""Fine-tuning an encoder: its accuracy, its starting point, and that the guide is unchanged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.bits import assert_same
from helpers.programs import images, small_vae
from pyro.distributions import constraints
from torch import Tensor, nn

from pyro_vae.evaluate import NoAnalyticMeanError, finetune, posterior_means
from pyro_vae.evaluate.features.finetune import find_parameters
from pyro_vae.evaluate.features.probe import logistic
from pyro_vae.infer.streams import rng_state


class Encoder(nn.Module):
    """q(z|x) = N(scale net(x), exp(spread(x))), where scale is only in the param store."""

    def __init__(self, inputs: int, hidden: int, units: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Dropout(0.5), nn.Linear(hidden, units))
        self.spread = nn.Linear(inputs, units)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self)
        scale = pyro.param("scale", torch.tensor(20.0), constraint=constraints.positive)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(scale * self.net(x), self.spread(x).exp()).to_event(1))


def xor_clusters() -> tuple[Tensor, np.ndarray]:
    """Four clusters, opposite ones of the same class, which no line separates, nor one unit of a random network."""
    corners = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]]).repeat(25, 1)
    return corners + 0.1 * torch.randn(100, 2), np.arange(100) % 2


def test_finetuning_separates_what_a_linear_head_cannot() -> None:
    encoder, (x, classes) = Encoder(2, 50, 1), xor_clusters()
    assert (finetune(encoder.guide, x, classes, x, num_steps=0, seed=0) == classes).mean() < 0.9
    assert (finetune(encoder.guide, x, classes, x, num_steps=150, seed=0) == classes).all()


def test_zero_steps_give_logistic_regression_on_the_means() -> None:
    vae, x, test = small_vae(), images(60), images(200)
    classes = np.arange(60) % 3 + 4
    means = [posterior_means(vae.guide, batch).cpu().numpy() for batch in (x, test)]
    found = finetune(vae.guide, x, classes, test, num_steps=0, seed=0)
    np.testing.assert_array_equal(found, logistic(means[0], classes, means[1]))
    assert set(found) == {4, 5, 6}


def test_same_seed_trains_the_same_classifier() -> None:
    encoder, (x, classes) = Encoder(2, 50, 1), xor_clusters()
    found = [finetune(encoder.guide, x[:60], classes[:60], x, num_steps=50, seed=s) for s in (0, 0)]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("fitted", [False, True])
def test_guide_is_unchanged(fitted: bool) -> None:
    """Values, storages, gradients, modes, the param store and the random generators, bit for bit."""
    encoder, (x, classes) = Encoder(2, 8, 1), xor_clusters()
    if fitted:
        encoder.guide(x)
        for p in encoder.parameters():
            p.grad = torch.randn_like(p)
    encoder.net.train()
    encoder.spread.eval()
    store = pyro.get_param_store()

    def state() -> dict[str, Any]:
        tensors = dict(encoder.named_parameters()) | {name: store[name].unconstrained() for name in store}
        return {
            "values": {name: p.detach().clone() for name, p in tensors.items()},
            "gradients": {name: p.grad.clone() for name, p in tensors.items() if p.grad is not None},
            "storages": {name: p.data_ptr() for name, p in tensors.items()},
            "modes": [part.training for part in encoder.modules()],
            "streams": rng_state(),
        }

    before = state()
    finetune(encoder.guide, x, classes, x, num_steps=20, seed=None)
    assert_same(state(), before)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):  # images of another shape after training
        finetune(encoder.guide, x, classes, x[:, :1], num_steps=3)
    assert_same(state(), before)


def test_mean_parameters_are_those_that_the_mean_depends_on() -> None:
    encoder = Encoder(2, 8, 3)
    scale = torch.tensor(2.0, requires_grad=True)
    found = find_parameters(scale * encoder.net(torch.randn(4, 2)))
    assert {id(p) for p in found} == {id(p) for p in [scale, *encoder.net.parameters()]}
    assert len(found) == 5
    assert find_parameters(torch.zeros(2)) == []


def two_sites(x: Tensor) -> None:
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Normal(x, 1.0).to_event(1))
        pyro.sample("w", dist.Normal(z, 1.0).to_event(1))


def fixed(x: Tensor) -> None:
    with pyro.plate("data", x.shape[0]):
        pyro.sample("z", dist.Normal(x, 1.0).to_event(1))


@pytest.mark.parametrize(("guide", "words"), [(two_sites, "exactly one latent site"), (fixed, "no parameter")])
def test_guides_without_a_trainable_mean_are_rejected(guide: Callable[..., None], words: str) -> None:
    x, classes = xor_clusters()
    with pytest.raises(NoAnalyticMeanError, match=words):
        finetune(guide, x, classes, x)
