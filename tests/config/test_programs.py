"""Objects built from flags: objectives, programs and the images that they are fitted to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from helpers.calls import one_line

from pyro_vae import data
from pyro_vae.config import Config, programs
from pyro_vae.model import likelihoods
from pyro_vae.runs import load_images


@pytest.mark.parametrize(
    ("objective", "unread"),
    [
        ("elbo", {"beta": 2.0}),
        ("iwae", {"warmup_epochs": 3}),
        ("beta", {"free_bits": 0.3}),
        ("free-bits", {"beta": 0.5}),
        ("beta-tcvae", {"mmd_weight": 10.0}),
        ("wae-mmd", {"beta": 0.5}),
    ],
)
def test_flag_without_effect_on_the_objective_is_rejected(objective: str, unread: dict[str, float]) -> None:
    (name,) = unread
    with pytest.raises(
        ValueError, match=f"--{name.replace('_', '-')} applies only to --objective .*, not to {objective}"
    ):
        programs.build_objective(Config(objective=objective, **unread), 100)


@pytest.mark.parametrize(
    ("net", "unread", "says"),
    [
        ("linear", {"depth": 3}, r"--depth applies only to --net mlp and .* and resnet, not to linear"),
        ("linear", {"width": 8}, r"--width applies only to --net conv and resnet, not to linear; .* --hidden-dim"),
        *((net, {"width": 8}, f"not to {net}; .* --hidden-dim") for net in ("mlp", "relu", "gated", "funnel")),
    ],
)
def test_flag_without_effect_on_the_networks_is_rejected(net: str, unread: dict[str, int], says: str) -> None:
    settings, images = small(net=net, **unread)
    with pytest.raises(ValueError, match=says) as caught:
        programs.build(settings, images)
    one_line(caught.value)
    assert programs.ignored_defaults(settings) | {"width": None} == programs.ignored_defaults(
        replace(settings, depth=None, width=None)
    )


@pytest.mark.parametrize("flags", [{"depth": 2}, {"width": 32}])
def test_custom_program_may_use_any_network_flag(flags: dict[str, int]) -> None:
    programs.check_flags(Config(program="my.py:factory", net="linear", **flags))


@pytest.mark.parametrize(
    ("net", "flags", "layers"),
    [
        ("mlp", {}, 6),
        ("mlp", {"depth": 0}, 2),
        ("relu", {"depth": 1}, 4),
        ("funnel", {"depth": 5}, 12),
        ("gated", {"depth": 3}, 14),
        ("conv", {}, 8),
        ("conv", {"depth": 1, "width": 4}, 16),
        ("resnet", {"width": 4}, 24),
        ("resnet", {"depth": 3}, 32),
    ],
)
def test_networks_have_the_requested_depth_and_width(net: str, flags: dict[str, int], layers: int) -> None:
    """Measured by the number of weights in both networks: residual blocks and gated layers have two weights."""
    settings, images = small(net=net, **flags)
    vae = programs.build(settings, images)
    weights = [p for name, p in vae.named_parameters() if name.endswith("weight")]
    assert len(weights) == layers
    if net in ("conv", "resnet"):
        assert {p.shape[0] for p in weights if p.dim() == 4} == {k * flags.get("width", 32) for k in (1, 2)}
    if net == "funnel":
        assert [p.shape[0] for p in vae.posterior.net[1].parameters() if p.dim() == 2] == [4, 2, 1, 1, 1, 6]


def small(**changes: Any) -> tuple[Config, data.Images]:
    settings = Config(device="cpu", latent_dim=3, hidden_dim=4, **changes)
    return settings, load_images(settings).pixels


def test_bernoulli_decoder_starts_at_the_mean_image() -> None:
    settings, images = small(binarize="fixed")
    vae = programs.build(settings, images)
    mean = images.train.numpy().reshape(len(images.train), -1).mean(0) / 255
    mean = np.clip(mean, 1e-3, 1 - 1e-3)  # the corners are black in every image
    assert isinstance(vae.likelihood, likelihoods.Bernoulli)
    bias = vae.likelihood.bias.detach().flatten().numpy()
    np.testing.assert_allclose(bias, np.log(mean / (1 - mean)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_same_seed_gives_the_same_parameters(likelihood: str) -> None:
    settings, images = small(likelihood=likelihood, prior="mixture", binarize="none")

    def parameters(seed: int) -> dict[str, torch.Tensor]:
        pyro.set_rng_seed(seed)
        return programs.build(settings, images).state_dict()

    first, second, other = parameters(3), parameters(3), parameters(4)
    assert all(torch.equal(first[name], second[name]) for name in first)
    weights = [name for name in first if name.endswith("weight")]
    assert len(weights) == 6  # three layers in each network
    assert not any(torch.equal(first[name], other[name]) for name in weights)


def test_load_images_takes_the_first_images_and_binarizes() -> None:
    settings, images = small(binarize="threshold", train_images=20, test_images=10)
    grey = data.load("digits", settings.data_root)
    assert torch.equal(images.train, 255 * (grey.train[:20] >= 128).byte())
    assert torch.equal(images.test, 255 * (grey.test[:10] >= 128).byte())
