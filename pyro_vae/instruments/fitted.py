r"""The results of a fit in its run folder: all numbers first, then the figures, each by itself."""

from __future__ import annotations

from typing import Any

from pyro_vae import parallel
from pyro_vae.evaluate import Scores
from pyro_vae.instruments.score_figures import draw_scores
from pyro_vae.instruments.scores import measure_scores
from pyro_vae.report import curves
from pyro_vae.runs import Run, RunFolder
from pyro_vae.runs.summary import write_summary


def score_fit(run: Run, folder: RunFolder, parameters: int) -> tuple[Scores, dict[str, Any]]:
    """Score the test images with fitted weights in the param store, and write scores.nc and summary.json.

    summary.json, which marks a run as finished, is written before any figure is drawn.

    Args:
        run: The run.
        folder: Its folder.
        parameters: Number of fitted parameters.

    Returns:
        The scores and their summary.
    """
    settings = run.config
    assert settings.num_samples is not None
    scores, numbers = measure_scores(
        run.program,
        run.observed("test"),
        settings.num_samples,
        density=run.density,
        seed=settings.seed,
        compiled=run.execution == "compiled",
        level_bits=run.images.level_bits,
    )

    def write() -> None:
        folder.write_scores(scores)
        write_summary(folder, settings.to_json(), numbers, parameters=parameters, metrics=folder.metrics())

    parallel.on_first(write)
    return scores, numbers


def draw_fit(run: Run, folder: RunFolder, scores: Scores) -> None:
    """Draw the figures of a fit whose numbers are written; errors are kept in ``folder.undrawn``."""
    with folder.drawing("learning_curve"):
        folder.save_figure("learning_curve", curves.learning_curve(folder.metrics()))
    if not scores.reason:
        with folder.drawing("bounds"):
            folder.save_figure("bounds", curves.bounds({folder.title: scores}))
    draw_scores(folder, run.program, run.observed("test"), scores, run.config.seed, run.images.pixels.columns)
