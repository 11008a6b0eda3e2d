r"""Scores of test images, the main measurement of a run: log p(x), its bounds, their summary and figures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from pyro_vae import parallel
from pyro_vae.evaluate import (
    Moments,
    Scores,
    active_units,
    decode_mean,
    elbo_surgery,
    posterior_moments,
    sample_posterior,
    split_rate,
    summarize,
)
from pyro_vae.evaluate.posterior.surgery import RATE_TERMS
from pyro_vae.instruments.batches import Part, batches, score_batched
from pyro_vae.instruments.generated import generate_images, observes_x
from pyro_vae.instruments.quantity import digest_images, name_quantity
from pyro_vae.runs import versions
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
    proposal: str = "guide",
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
        proposal: Proposal of the weights that estimate log p(x), as in `evaluate.score`.

    Returns:
        The scores of all images, and their summary, which includes the time of the evaluation in seconds.
    """
    start = time.perf_counter()
    batch, parts = Batch.of(x), list(batches(x, seed))
    scores = score_batched(program, batch, num_samples, seed=seed, compiled=compiled, proposal=proposal)
    moments = Moments.concatenate(
        parallel.map_parts(lambda part: posterior_moments(program.guide, part[0], seed=part[1]), parts)
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
    for value in parallel.map_parts(error, parts):
        if value is None:
            return None
        total += value
    return total / sum(len(images) for images, _ in parts)


def _reason(name: str, scores: Scores) -> str:
    if name == "squared_error":
        return "the mean of p(x|z) has no closed form"
    return scores.reason or "the rate is non-finite"
