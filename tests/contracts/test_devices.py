"""Every component on a device other than the CPU: no tensor is left on the default device.

The device is simulated, so that the test runs everywhere; see `helpers/simulated_device.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pytest
import torch
from helpers import simulated_device

from pyro_vae.config import Config, components, programs
from pyro_vae.evaluate import score
from pyro_vae.runs import load_images

pytestmark = [pytest.mark.host, pytest.mark.slow]

SMALL: dict[str, Any] = {"data": "digits", "hidden_dim": 24, "latent_dim": 2, "train_images": 60, "test_images": 10}
CHOICES = [  # two likelihoods are missing: they take counts, not gray images
    *(("prior", name) for name in components.PRIORS),
    *(("posterior", name) for name in components.POSTERIORS),
    *(
        ("likelihood", name) for name in sorted(components.LIKELIHOODS.keys() - {"poisson", "negative-binomial"})
    ),  # of counts
    *(("net", name) for name in components.NETS),
    *(("objective", name) for name in components.OBJECTIVES),
    *(("program", name) for name in ("two-layer", "gmvae", "pixelcnn")),
]


def built(field: str, name: str) -> tuple[Config, Any, torch.Tensor]:
    """Return the configuration, the program on the CPU and three images for one choice of a component."""
    binary = (
        {"binarize": "dynamic"} if name in ("bernoulli", "pixelcnn") or field != "likelihood" else {"binarize": "none"}
    )
    small = {key: SMALL[key] for key in SMALL if key != "latent_dim" or name != "pixelcnn" or field != "program"}
    config = Config(**{**small, **binary, "device": "cpu", field: name}).resolve()
    images = load_images(config)
    torch.manual_seed(0)
    program = programs.build(config, images.pixels)
    return config, program, images.split("valid")[:3].to(torch.get_default_dtype())


def numbers(config: Config, program: Any, x: torch.Tensor) -> list[np.ndarray]:
    """Return the gradients of the objective, and scores and images where the program permits them."""
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    objective = programs.build_objective(config, 60)
    objective.loss_and_grads(program.model, program.guide, x)
    found = [p.grad.cpu().numpy() for p in program.parameters() if p.grad is not None]
    scores = score(program.model, program.guide, x, 6, seed=0)
    found += [scores.elbo, scores.log_likelihood]
    return found


@pytest.mark.parametrize(("field", "name"), CHOICES)
def test_results_on_another_device_are_those_of_the_cpu(field: str, name: str) -> None:
    simulated_device.install()
    config, program, x = built(field, name)
    expected = numbers(config, program, x)
    device = torch.device(simulated_device.NAME)
    config, program, x = built(field, name)
    found = numbers(config, program.to(device), x.to(device))
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
