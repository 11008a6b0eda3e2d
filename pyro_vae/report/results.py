r"""From a fitted program to the results in a folder: scores, summary, figures, and the table at the end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from pyro_vae.evaluate import (
    Moments,
    Scores,
    active_units,
    posterior_moments,
    prior_images,
    reconstructions,
    score,
    standard_error,
    summary,
    surgery,
    verdict,
)
from pyro_vae.report import pictures, plots
from pyro_vae.report.folder import Folder
from pyro_vae.report.names import shown
from pyro_vae.report.run import versions
from pyro_vae.trace import CompiledReader, Reader

IMAGES_AT_ONCE = 100
_AGGREGATED_IMAGES = 1000
_SHOWN_IMAGES, _SHOWN_SAMPLES = 20, 100
Program = Any


def measure(
    program: Program, x: Tensor, num_samples: int, *, density: bool, seed: int, compiled: bool = False
) -> tuple[Scores, dict[str, Any]]:
    """Score test images and summarise them.

    Args:
        program: an object with ``model(x)`` and ``guide(x)``.
        x: test images (N, ...) as the program observes them.
        num_samples: K of the importance-sampled log-likelihood.
        density: whether x is observed under a density over dequantized pixels.
        seed: of the draws.
        compiled: whether the programs are read by compiled graphs.

    Returns:
        The scores of all images, and the summary with the seconds it took.
    """
    start = time.perf_counter()
    batches = tqdm(x.split(IMAGES_AT_ONCE), desc="log p(x)", unit="batch", disable=None, leave=False)
    reader = CompiledReader() if compiled else Reader()
    scores = Scores.concatenate(
        score(program.model, program.guide, images, num_samples, seed=seed + number, reader=reader)
        for number, images in enumerate(batches)
    )
    moments = Moments.concatenate(
        posterior_moments(program.guide, images, seed=seed) for images in x.split(IMAGES_AT_ONCE)
    )
    numbers = summary(scores, active_units(moments), x[0].numel(), density=density)
    parts = surgery(program.model, program.guide, x[:_AGGREGATED_IMAGES], seed=seed)
    numbers["mutual_information"] = float(parts.mutual_information.mean())
    numbers["marginal_kl"] = float(parts.marginal_kl.mean())
    return scores, {**numbers, "evaluate_seconds": time.perf_counter() - start, "versions": versions()}


def write_results(folder: Folder, program: Program, x: Tensor, scores: Scores, seed: int) -> None:
    """Write the per-image scores and the figures that show a program at work."""
    folder.write_scores(scores)
    some = x[:_SHOWN_IMAGES]
    means = reconstructions(program.model, program.guide, some, seed=seed)
    like = x[:1].expand(_SHOWN_SAMPLES, *x.shape[1:])
    samples = prior_images(program.model, like, seed=seed)
    folder.save_figure("reconstructions", pictures.reconstructions(some, means))
    folder.save_figure("prior_samples", pictures.image_grid(samples, "means of p(x|z) for z from the prior"))
    folder.save_figure("khat", plots.khat(scores.khat, scores.num_samples))


def table(summaries: Mapping[str, Mapping[str, Any]], scores: Mapping[str, Scores]) -> str:
    """Lay out the short table of one or more runs, in nats per image."""
    annealed = any("annealing" in numbers for numbers in summaries.values())
    heads = ("ELBO", "IWAE_5", "IWAE_50", "log p(x)", "PSIS", "JVI-2", *(("AIS", "gap") if annealed else ()))
    widths = (10, 10, 10, 18, 10, 10, 10, 16)
    lines = [f"{'':24}" + "".join(f"{head:>{width}}" for head, width in zip(heads, widths, strict=False)) + "   k-hat"]
    for name, numbers in summaries.items():
        path = numbers.get("annealing", {})
        cells = [
            _number(numbers["elbo"]),
            *(_number(numbers["iwae"].get(k)) for k in ("5", "50")),
            f"{_number(numbers['log_likelihood'])} +- {_number(numbers['log_likelihood_se'])}",
            _number(numbers["psis"]),
            _number(numbers["jvi2"]),
            _number(path.get("log_likelihood")),
            f"{_number(path.get('gap'))} +- {_number(path.get('gap_se'))}",
        ]
        row = "".join(f"{cell:>{width}}" for cell, width in zip(cells[: len(heads)], widths, strict=False))
        lines.append(f"{shown(name)[-23:]:24}{row}   {verdict(scores[name].khat, scores[name].num_samples)}")
    lines.append("nats per image; +- 1 s.e. over images; log p(x) is a lower bound in expectation, from K samples")
    if annealed:
        lines.append("AIS: annealed importance sampling; gap: upper minus lower bound on images of the model's own")
    return "\n".join(lines)


def write_bounds(folder: Folder, scores: Scores) -> None:
    """Write bounds.csv: the IWAE bound over K with its standard errors, over images and over groups of particles."""
    rows = ["num_particles,iwae,se_over_images,se_over_groups"]
    for k, bound, error in zip(scores.ladder, scores.iwae, scores.iwae_se, strict=True):
        # Of a single group, the delta method.
        spread = scores.relative_variance if k == scores.num_samples else error**2
        of_groups = float(np.sqrt(spread.sum()) / scores.num_images)
        rows.append(f"{k},{bound.mean()},{standard_error(bound)},{of_groups}")
    folder.write_text("bounds.csv", "\n".join(rows) + "\n")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
