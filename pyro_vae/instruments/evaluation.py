r"""The evaluation of a finished run: all numbers first, then the figures, each by itself."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from pyro_vae import parallel
from pyro_vae.evaluate import Scores, standard_error
from pyro_vae.instruments.instrument import EvaluatedRun, Instrument
from pyro_vae.instruments.score_figures import draw_scores
from pyro_vae.instruments.scores import measure_scores
from pyro_vae.runs import Folder
from pyro_vae.runs.summary import num_parameters, write_summary


def evaluate_run(
    run: EvaluatedRun, results: Folder, requested: Sequence[Instrument], proposal: str
) -> tuple[Scores, dict[str, Any]]:
    """Score one run, run the requested instruments on it, and write the results.

    The results of a former call are replaced as soon as the run has been scored. If an instrument fails, the numbers of
    those before it are written nevertheless. Several processes share out the images. Only the first one writes.
    """
    fitted, settings = run.fitted, run.fitted.config
    assert settings.num_samples is not None
    for instrument in requested:
        parallel.on_first(partial(instrument.check, run))
    metrics, parameters = run.folder.metrics(), num_parameters(fitted.program)
    parallel.on_first(results.lock)
    scores, numbers = measure_scores(
        fitted.program,
        run.test,
        settings.num_samples,
        density=fitted.density,
        seed=settings.seed,
        compiled=fitted.execution == "compiled",
        level_bits=fitted.images.level_bits,
        proposal=proposal,
    )
    write = partial(
        write_summary,
        results,
        settings.to_json(),
        numbers,
        parameters=parameters,
        metrics=metrics,
        finished=run.folder.finished,
    )

    def replace_results() -> None:
        results.clear()
        results.write_scores(scores)
        write_bounds(results, scores)
        write()

    parallel.on_first(replace_results)
    measured = []
    for instrument in requested:
        result = instrument.measure(run, settings.seed)
        parallel.on_first(partial(result.write, results, instrument.name))
        if result.numbers != {}:
            numbers[instrument.name] = result.numbers
        numbers["reasons"] |= result.reasons
        parallel.on_first(write)
        measured.append(result)

    def draw() -> None:
        for result in measured:
            result.draw(results)
        draw_scores(results, fitted.program, run.test, scores, settings.seed, fitted.images.pixels.columns)

    parallel.on_first(draw)
    return scores, numbers


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
