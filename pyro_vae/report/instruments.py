r"""Measurements that take their time: annealing, and posteriors of single images."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from pyro_vae.evaluate import Annealed, Annealing, Bidirectional, anneal, bidirectional, local_elbos, standard_error
from pyro_vae.report.results import IMAGES_AT_ONCE, Program
from pyro_vae.trace import Batch, Data, derive

PerImage = dict[str, np.ndarray]


def measure_annealing(program: Program, x: Data, settings: Annealing, seed: int) -> tuple[PerImage, dict[str, Any]]:
    """Anneal test images, and as many images of the model's own from both sides.

    Args:
        program: an object with ``model(x)`` and ``guide(x)``.
        x: test images (N, ...) as the program observes them.
        settings: how to anneal.
        seed: of all noise.

    Returns:
        Arrays (N,) in nats, and their means with standard errors over images.
    """
    start = time.perf_counter()
    bar = partial(tqdm, desc="annealing", unit="temperature", disable=None, leave=False)
    found, both = [], []
    for number, images in enumerate(Batch.of(x).split(IMAGES_AT_ONCE)):
        arguments = (program.model, program.guide, images, settings)
        found.append(anneal(*arguments, seed=derive(seed, "batch", number), progress=bar))
        both.append(bidirectional(*arguments, seed=derive(seed, "batch", number), progress=bar))
    annealed, sides = Annealed.concatenate(found), Bidirectional.concatenate(both)
    per_image = {
        "log_likelihood": annealed.lower,
        "ess": annealed.ess,
        "acceptance": annealed.acceptance,
        "simulated_lower": sides.forward.lower,
        "simulated_upper": sides.backward.upper,
    }
    numbers = {
        **vars(settings),
        "log_likelihood": float(annealed.lower.mean()),
        "log_likelihood_se": standard_error(annealed.lower),
        "ess_median": float(np.median(annealed.ess)),
        "acceptance": float(annealed.acceptance.mean()),
        "gap": float(sides.gap.mean()),
        "gap_se": standard_error(sides.gap),
        "seconds": time.perf_counter() - start,
    }
    return per_image, {k: v if v == v else None for k, v in numbers.items()}


def measure_slack(program: Program, x: Data, num_steps: int, seed: int) -> tuple[PerImage, dict[str, Any]]:
    """Optimise a posterior for each test image (N, ...); return the ELBOs (N,) and their means, in nats."""
    bar = partial(tqdm, desc="local posteriors", unit="step", disable=None, leave=False)
    batches = [
        local_elbos(
            program.model, program.guide, images, num_steps=num_steps, seed=derive(seed, "batch", number), progress=bar
        )
        for number, images in enumerate(Batch.of(x).split(IMAGES_AT_ONCE))
    ]
    per_image = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    numbers: dict[str, Any] = {"num_steps": num_steps}
    for name, values in per_image.items():
        numbers |= {name: float(values.mean()), f"{name}_gain": float((values - per_image["amortized"]).mean())}
        numbers[f"{name}_gain_se"] = standard_error(values - per_image["amortized"])
    return per_image, {k: v if v == v else None for k, v in numbers.items()}
