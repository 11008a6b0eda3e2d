"""Settings adapted to the data: likelihood and binarization for each kind of data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.calls import one_line

from pyro_vae import data
from pyro_vae.config import Config, programs
from pyro_vae.config.suited import LIKELIHOODS_OF, adapt_to_data
from pyro_vae.errors import UserError


def of_kind(kind: str) -> data.Collection:
    shape = (3, 4, 5) if kind == "color" else (4, 5)
    if kind in ("real", "counts"):
        rows = torch.randn(30, 4) if kind == "real" else torch.randint(0, 9, (30, 4)).to(torch.get_default_dtype())
        return data.Numbers("mine", rows, rows, rows, counts=kind == "counts")
    pixels = torch.randint(0, 256, (30, *shape), dtype=torch.uint8)
    pixels = 255 * (pixels > 127).byte() if kind == "binary" else pixels
    return data.Images("mine", pixels, pixels, pixels)


@pytest.mark.parametrize(
    ("kind", "flags", "expected"),
    [
        ("gray", {"data": "mnist"}, ("bernoulli", "dynamic")),
        ("gray", {"data": "mnist", "binarize": "threshold"}, ("bernoulli", "threshold")),
        ("gray", {"data": "mnist", "binarize": "none"}, ("logistic-mixture", "none")),
        ("gray", {"data": "mnist", "likelihood": "gaussian"}, ("gaussian", "none")),
        ("gray", {"data": "mnist", "program": "pixelcnn"}, ("bernoulli", "dynamic")),
        ("gray", {}, ("logistic-mixture", "none")),
        ("gray", {"binarize": "fixed"}, ("bernoulli", "fixed")),
        ("gray", {"likelihood": "bernoulli"}, ("bernoulli", "dynamic")),
        ("gray", {"program": "pixelvae"}, ("bernoulli", "dynamic")),
        ("color", {}, ("logistic-mixture", "none")),
        ("color", {"data": "cifar10"}, ("logistic-mixture", "none")),
        ("color", {"binarize": "dynamic"}, ("bernoulli", "dynamic")),
        ("binary", {}, ("bernoulli", "dynamic")),
        ("binary", {"data": "static-mnist"}, ("bernoulli", "dynamic")),
        ("real", {}, ("gaussian", "none")),
        ("real", {"likelihood": "isotropic-gaussian"}, ("isotropic-gaussian", "none")),
        ("counts", {}, ("negative-binomial", "none")),
        ("counts", {"likelihood": "gaussian"}, ("gaussian", "none")),
    ],
)
def test_unset_flags_are_adapted_to_the_data(kind: str, flags: dict[str, Any], expected: tuple[str, str]) -> None:
    settings = adapt_to_data(Config(**{"data": "./mine", **flags}), of_kind(kind))
    assert (settings.likelihood, settings.binarize) == expected
    assert adapt_to_data(settings, of_kind(kind)) == settings  # adapting twice changes nothing
    programs.check_flags(settings)


@pytest.mark.parametrize(
    ("kind", "flags", "says"),
    [
        ("real", {"likelihood": "bernoulli"}, "--likelihood bernoulli does not support real data; --likelihood may be"),
        ("real", {"likelihood": "poisson"}, "gaussian, isotropic-gaussian"),
        ("counts", {"likelihood": "logistic-mixture"}, "negative-binomial, poisson"),
        ("color", {"likelihood": "negative-binomial"}, "does not support color data"),
        ("real", {"program": "pixelvae"}, "--program pixelvae does not support real data"),
        ("counts", {"program": "pixelcnn"}, "--program pixelcnn does not support counts data"),
    ],
)
def test_incompatible_data_and_flags_are_rejected(kind: str, flags: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as caught:
        adapt_to_data(Config(data="./mine", **flags), of_kind(kind))
    assert says in one_line(caught.value)


@pytest.mark.parametrize("kind", LIKELIHOODS_OF)
def test_every_likelihood_listed_for_a_kind_scores_it(kind: str) -> None:
    """The log-densities are finite."""
    for name in LIKELIHOODS_OF[kind]:
        if (kind, name) == ("color", "pixelcnn"):  # which rejects color images
            continue
        images = of_kind(kind)
        settings = adapt_to_data(
            Config(data="./mine", likelihood=name, latent_dim=2, hidden_dim=4, device="cpu"), images
        )
        observed = images.observed(settings.binarize)
        if name in ("gaussian", "isotropic-gaussian", "continuous-bernoulli"):
            observed = observed.with_dequantization() if settings.binarize == "none" else observed
        program = programs.build(settings, observed.pixels)
        x = observed.split("test").to(torch.get_default_dtype())
        found = program.likelihood(torch.zeros(2)).log_prob(x)
        assert found.shape == (30,)
        assert found.isfinite().all(), name
