r"""Measurements that take their time: annealing, and posteriors of single images."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from pyro_vae.evaluate import (
    Annealed,
    Annealing,
    Bidirectional,
    ais,
    bdmc,
    discrete_values,
    local_elbos,
    posterior_probs,
    standard_error,
)
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
        found.append(ais(*arguments, seed=derive(seed, "batch", number), progress=bar))
        both.append(bdmc(*arguments, seed=derive(seed, "batch", number), progress=bar))
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


def measure_classes(program: Program, x: Data, labels: np.ndarray, seed: int) -> dict[str, Any] | None:
    """Hold the most probable value of the one discrete latent against the labels (N,); None where there is no such one.

    Returns:
        `confusion`, images of each label (rows) at each value (columns), and the `purity` of the values: the share of
        the images whose label is the most frequent one of their value, with its standard error. Of a program that is
        told labels also its `accuracy`.
    """
    parts = list(Batch.of(x).split(IMAGES_AT_ONCE))
    if len(discrete_values(program.model, program.guide, parts[0])) != 1:
        return None
    probs = [
        next(iter(posterior_probs(program.model, program.guide, images, seed=derive(seed, "batch", number)).values()))
        for number, images in enumerate(parts)
    ]
    values = torch.cat(probs).argmax(1).cpu().numpy()
    confusion = np.zeros((int(labels.max()) + 1, probs[0].shape[1]), int)
    np.add.at(confusion, (labels, values), 1)
    purity = float(confusion.max(0).sum() / len(labels))
    found = {"purity": purity, "purity_se": _se_of_share(purity, len(labels)), "confusion": confusion.tolist()}
    if hasattr(program, "num_labels"):
        accuracy = float((values == labels).mean())
        found |= {"accuracy": accuracy, "accuracy_se": _se_of_share(accuracy, len(labels))}
    return found


def _se_of_share(share: float, number: int) -> float:
    return float(np.sqrt(share * (1 - share) / number))


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
