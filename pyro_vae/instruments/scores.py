r"""Scores of test images, the main measurement of a run: log p(x), its bounds, their summary, table and figures."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pyro_vae import ranks
from pyro_vae.evaluate import (
    Moments,
    Scores,
    active_units,
    decode_mean,
    describe_khat,
    elbo_surgery,
    posterior_moments,
    sample_posterior,
    split_rate,
    standard_error,
    summarize,
)
from pyro_vae.evaluate.posterior.surgery import RATE_TERMS
from pyro_vae.instruments.batches import Part, batches, score_batched
from pyro_vae.instruments.comparable import with_other_images
from pyro_vae.instruments.generated import generate_images, observes_x
from pyro_vae.instruments.quantity import digest_images, name_quantity
from pyro_vae.report.tables import format_number, format_table, format_with_error
from pyro_vae.runs import Folder, versions
from pyro_vae.text import printable
from pyro_vae.trace import Batch, Data, describe

_AGGREGATED_IMAGES = 4000  # maximum number of posteriors in the aggregate posterior
_AGGREGATED_PAIRS = 2_000_000  # maximum number of pairs of a code and one of them, which bounds the cost
_OTHER_UNIT = "the program does not observe x unchanged, so that its unit is not that of x"


def measure_scores(
    program: Any,
    x: Data,
    num_samples: int,
    *,
    density: bool,
    seed: int,
    compiled: bool = False,
    level_bits: int | None = 8,
) -> tuple[Scores, dict[str, Any]]:
    """Score test images and summarize the scores.

    Args:
        program: Object with ``model(x)`` and ``guide(x)``.
        x: Test images as the program observes them, shape (N, ...), or a `Batch` with the other arguments.
        num_samples: Number K of importance samples per image for log p(x).
        density: Whether x is observed under a density.
        seed: Random seed of the samples.
        compiled: Whether to evaluate log-densities with compiled graphs.
        level_bits: See `evaluate.summarize`.

    Returns:
        The scores of all images, and their summary, which includes the time of the evaluation in seconds.
    """
    start = time.perf_counter()
    batch, parts = Batch.of(x), list(batches(x, seed))
    scores = score_batched(program, batch, num_samples, seed=seed, compiled=compiled)
    moments = Moments.concatenate(
        ranks.map_parts(lambda part: posterior_moments(program.guide, part[0], seed=part[1]), parts)
    )
    measured = summarize(scores, active_units(moments), batch.x[0].numel(), density=density, level_bits=level_bits)
    extra: dict[str, Any] = dict.fromkeys((*RATE_TERMS, "squared_error"))
    if measured["rate"] is not None:
        # One random stream for all images: the same computation in every process.
        images_of_q, num_codes = batch[:_AGGREGATED_IMAGES], _AGGREGATED_PAIRS // min(len(batch), _AGGREGATED_IMAGES)
        surgery = elbo_surgery(program.model, program.guide, images_of_q, num_codes=num_codes, seed=seed)
        terms, reasons = split_rate(scores.rate, surgery)
        extra, measured["reasons"] = extra | terms, measured["reasons"] | reasons
    description = describe(program.model, program.guide, parts[0][0])
    observed = [name for name, site in description.model.items() if site.role == "observed"]
    if observes_unchanged := description.image is not None:
        extra["squared_error"] = _squared_error(program, parts)
    missing = [name for name, value in extra.items() if value is None]
    measured["reasons"] = {name: _reason(name, scores) for name in missing} | measured["reasons"]
    if not observes_unchanged:
        measured["reasons"]["squared_error"] = _OTHER_UNIT
    # Bits per dimension require that log p covers the pixels only and that a density is in the unit of x.
    if (density and not observes_unchanged) or (observes_unchanged and len(observed) > 1):
        measured["bits_per_dim"] = None
        measured["reasons"]["bits_per_dim"] = (
            _OTHER_UNIT if not observes_unchanged else "the program has other observed sites besides x"
        )
    extra["quantity"] = name_quantity(batch, observed, description.image, density=density)
    extra["test_images"] = digest_images(batch)
    return scores, {**measured, **extra, "evaluate_seconds": time.perf_counter() - start, "versions": versions()}


def rehearse(program: Any, x: Data, *, density: bool) -> None:
    """Evaluate an untrained program on two images, to detect errors that would otherwise occur after training.

    Raises:
        ValueError: If the program cannot be scored or decoded.
    """
    probe_batch = Batch.of(x)[:2]
    measure_scores(program, probe_batch, 2, density=density, seed=0)
    if observes_x(program, probe_batch):
        generate_images(program, probe_batch, sample_posterior(program.guide, probe_batch, 0), 0, draws=False)


def _squared_error(program: Any, parts: Sequence[Part]) -> float | None:
    """Return the squared error of reconstructions, summed over pixels and averaged over images."""

    def error(part: Part) -> float | None:
        images, batch_seed = part
        means = decode_mean(program.model, images, sample_posterior(program.guide, images, batch_seed))
        return None if means is None else float((images.x - means).double().square().sum())

    total = 0.0
    for value in ranks.map_parts(error, parts):
        if value is None:
            return None
        total += value
    return total / sum(len(images) for images, _ in parts)


def _reason(name: str, scores: Scores) -> str:
    if name == "squared_error":
        return "the mean of p(x|z) has no closed form"
    return scores.reason or "the rate is non-finite"


def write_bounds(folder: Folder, scores: Scores) -> None:
    """Write bounds.csv: the mean IWAE bound over K, with standard errors over images and over groups of particles.

    The bound of image i for K particles is a mean over groups of K importance weights, with standard error s_i over
    groups; that of the mean over N images is sqrt(sum_i s_i^2) / N. For a single group of K weights,
    s_i^2 = var(w_i) / (K mean(w_i)^2) by the delta method.
    """
    rows = ["num_particles,iwae,se_over_images,se_over_groups"]
    for k, bound, error in zip(scores.particle_counts, scores.iwae, scores.iwae_se, strict=True):
        se_over_groups = float(np.sqrt((error**2).sum()) / scores.num_images)
        rows.append(f"{k},{bound.mean()},{standard_error(bound)},{se_over_groups}")
    folder.write_text("bounds.csv", "\n".join(rows) + "\n")


def scores_table(summaries: Mapping[str, Mapping[str, Any]], scores: Mapping[str, Scores]) -> str:
    """Format the main scores of one or more runs, given summary.json and the scores by the name of the run."""
    coded = any(summary.get("bits_per_dim") is not None for summary in summaries.values())
    annealed = any("annealing" in summary for summary in summaries.values())
    lossy = any(run_scores.reason for run_scores in scores.values())
    widths = {"": -24, "ELBO": 10, "IWAE_5": 10, "IWAE_50": 10, "log p(x)": 18, "PSIS": 10, "JVI-2": 10}
    widths |= {"bits/dim": 10} if coded else {}
    widths |= {"AIS": 10, "gap": 16} if annealed else {}
    widths |= {"distortion": 12, "sq. error": 11} if lossy else {}
    widths |= {"   k-hat": -1}
    rows = []
    for name, summary in summaries.items():
        annealing = summary.get("annealing", {})
        cells = {
            "": printable(name)[-23:],
            "ELBO": format_number(summary["elbo"]),
            "IWAE_5": format_number(summary["iwae"].get("5")),
            "IWAE_50": format_number(summary["iwae"].get("50")),
            "log p(x)": format_with_error(summary["log_likelihood"], summary["log_likelihood_se"]),
            "PSIS": format_number(summary["psis"]),
            "JVI-2": format_number(summary["jvi2"]),
            "bits/dim": format_number(summary.get("bits_per_dim"), ".3f"),
            "AIS": format_number(annealing.get("log_likelihood")),
            "gap": format_with_error(annealing.get("gap"), annealing.get("gap_se")),
            "distortion": format_number(summary.get("distortion")),
            "sq. error": format_number(summary.get("squared_error")),
            "   k-hat": "   " + (scores[name].reason or describe_khat(scores[name].khat, scores[name].num_samples)),
        }
        rows.append([cells[head] for head in widths])
    lines = format_table(list(widths.items()), rows)
    lines.append("nats per image; +- 1 s.e. over images; log p(x) is a lower bound in expectation, from K samples")
    if len({summary.get("density") for summary in summaries.values()}) > 1:
        dense = ", ".join(printable(name) for name, summary in summaries.items() if summary.get("density"))
        lines.append(f"{dense}: nats of a density, not comparable with nats of a probability; compare bits/dim")
    if others := with_other_images(summaries):
        names = ", ".join(map(printable, others))
        lines.append(f"{names}: other test images, so that nats are not comparable with those of the first run")
    if annealed:
        lines.append("AIS: annealed importance sampling; gap: upper minus lower bound on simulated images")
    return "\n".join(lines)
