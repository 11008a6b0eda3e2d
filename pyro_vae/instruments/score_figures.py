r"""Figures of the scores of a run: k-hat, reconstructions and prior samples."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from pyro_vae.evaluate import Scores
from pyro_vae.instruments.generated import observes_x, prior_samples, reconstructions
from pyro_vae.instruments.rows import write_rows
from pyro_vae.report import curves, images
from pyro_vae.runs import Folder
from pyro_vae.trace import Batch, Data

_LOG = logging.getLogger("pyro_vae")
_SHOWN_IMAGES, _SHOWN_COLUMNS = 20, 10


def draw_scores(folder: Folder, program: Any, x: Data, scores: Scores, seed: int, columns: Sequence[str] = ()) -> None:
    """Draw khat.png, and reconstructions.png and prior_samples.png if they apply to the program.

    Args:
        folder: Folder of the figures.
        program: Object with ``model(x)`` and ``guide(x)``.
        x: Test images, shape (N, *pixels), or rows, shape (N, columns), with the other arguments of the program if any.
        scores: Scores of x.
        seed: Random seed of the draws.
        columns: Names of the columns of a table.
    """
    with folder.drawing("khat"):
        folder.save_figure("khat", curves.khat(scores.khat, scores.num_samples))
    batch = Batch.of(x)
    shown_batch = batch[:_SHOWN_IMAGES]
    if not observes_x(program, shown_batch):
        _LOG.warning("No figures of images: no site of the program observes x unchanged.")
        return
    if shown_batch.x.dim() == 2:
        write_rows(folder, program, batch, columns, seed, "prior_samples")
        return
    if not images.are_pictures(shown_batch.x):
        shape = tuple(shown_batch.x.shape[1:])
        _LOG.warning("No figures of images: data of shape %s are neither gray nor color images.", shape)
        return
    with folder.drawing("reconstructions"):
        if shown := reconstructions(program, shown_batch, seed, draws=False):
            folder.save_figure("reconstructions", images.reconstructions(shown_batch.x, *shown.first()))
    with folder.drawing("prior_samples"):
        if shown := prior_samples(program, batch, _SHOWN_COLUMNS, seed, draws=False):
            samples, kind = shown.first()
            where = " for z from the prior" if shown.has_latents else ""
            folder.save_figure("prior_samples", images.image_grid(samples, kind + where))
