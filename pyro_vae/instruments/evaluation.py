r"""The evaluation of a finished run in its folder evaluation/: all numbers first, then the figures, each by itself."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from pyro_vae import ranks
from pyro_vae.evaluate import Scores
from pyro_vae.instruments.instrument import EvaluatedRun, Instrument
from pyro_vae.instruments.score_figures import draw_scores
from pyro_vae.instruments.scores import measure_scores, write_bounds
from pyro_vae.runs.summary import num_parameters, write_summary


def evaluate_run(run: EvaluatedRun, requested: Sequence[Instrument]) -> tuple[Scores, dict[str, Any]]:
    """Score one run, run the requested instruments on it, and write its evaluation folder.

    The results of a former call are replaced as soon as the run has been scored. If an instrument fails, the numbers of
    those before it are written nevertheless. Several processes share out the images. Only the first one writes.
    """
    fitted, settings, results = run.fitted, run.fitted.config, run.folder.evaluation
    assert settings.num_samples is not None
    for instrument in requested:
        ranks.on_first(partial(instrument.check, run))
    metrics, parameters = run.folder.metrics(), num_parameters(fitted.program)
    ranks.on_first(results.lock)
    scores, numbers = measure_scores(
        fitted.program,
        run.test,
        settings.num_samples,
        density=fitted.density,
        seed=settings.seed,
        compiled=fitted.execution == "compiled",
        level_bits=fitted.images.level_bits,
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

    ranks.on_first(replace_results)
    measured = []
    for instrument in requested:
        result = instrument.measure(run, settings.seed)
        ranks.on_first(partial(result.write, results, instrument.name))
        if result.numbers != {}:
            numbers[instrument.name] = result.numbers
        numbers["reasons"] |= result.reasons
        ranks.on_first(write)
        measured.append(result)

    def draw() -> None:
        for result in measured:
            result.draw(results)
        draw_scores(results, fitted.program, run.test, scores, settings.seed, fitted.images.pixels.columns)

    ranks.on_first(draw)
    return scores, numbers
