r"""From a fitted program to the results in a folder: scores, summary, figures, and the table at the end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

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
    summary,
    verdict,
)
from pyro_vae.report import plots
from pyro_vae.report.run import RunFolder, versions

_IMAGES_AT_ONCE = 100
_SHOWN_IMAGES, _SHOWN_SAMPLES = 20, 100
Program = Any


def measure(
    program: Program, x: Tensor, num_samples: int, *, density: bool, seed: int
) -> tuple[Scores, dict[str, Any]]:
    """Score test images and summarise them.

    Args:
        program: an object with ``model(x)`` and ``guide(x)``.
        x: test images (N, ...) as the program observes them.
        num_samples: K of the importance-sampled log-likelihood.
        density: whether x is observed under a density over dequantized pixels.
        seed: of the draws.

    Returns:
        The scores of all images, and the summary with the seconds it took.
    """
    start = time.perf_counter()
    batches = tqdm(x.split(_IMAGES_AT_ONCE), desc="log p(x)", unit="batch", disable=None, leave=False)
    scores = Scores.concatenate(
        score(program.model, program.guide, images, num_samples, seed=seed + number)
        for number, images in enumerate(batches)
    )
    moments = Moments.concatenate(
        posterior_moments(program.guide, images, seed=seed) for images in x.split(_IMAGES_AT_ONCE)
    )
    numbers = summary(scores, active_units(moments), x[0].numel(), density=density)
    return scores, {**numbers, "evaluate_seconds": time.perf_counter() - start, "versions": versions()}


def write_results(folder: RunFolder, program: Program, x: Tensor, scores: Scores, seed: int) -> None:
    """Write the per-image scores and the figures that show a program at work."""
    folder.write_scores(scores)
    shown = x[:_SHOWN_IMAGES]
    means = reconstructions(program.model, program.guide, shown, seed=seed)
    like = x[:1].expand(_SHOWN_SAMPLES, *x.shape[1:])
    samples = prior_images(program.model, like, seed=seed)
    folder.save_figure("reconstructions", plots.reconstructions(shown, means))
    folder.save_figure("prior_samples", plots.image_grid(samples, "means of p(x|z) for z from the prior"))
    folder.save_figure("khat", plots.khat(scores.khat, scores.num_samples))


def table(summaries: Mapping[str, Mapping[str, Any]], scores: Mapping[str, Scores]) -> str:
    """Lay out the short table of one or more runs, in nats per image."""
    lines = [f"{'':24}{'ELBO':>10}{'IWAE_5':>10}{'IWAE_50':>10}{'log p(x)':>20}   k-hat"]
    for name, numbers in summaries.items():
        bounds = "".join(f"{_number(numbers['iwae'].get(k)):>10}" for k in ("5", "50"))
        error = _number(numbers["log_likelihood_se"])
        likelihood = f"{_number(numbers['log_likelihood'])} +- {error}"
        verdict_ = verdict(scores[name].khat, scores[name].num_samples)
        lines.append(f"{name[-23:]:24}{_number(numbers['elbo']):>10}{bounds}{likelihood:>20}   {verdict_}")
    lines.append("nats per image; +- 1 s.e. over images; log p(x) is a lower bound in expectation")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
