r"""Figures of runs on tables: samples and reconstructions of rows."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from pyro_vae.data import column_names
from pyro_vae.instruments.generated import reconstructions, sample_images
from pyro_vae.report import rows
from pyro_vae.runs import Folder
from pyro_vae.trace import Batch

_LOG = logging.getLogger("pyro_vae")
_ROWS, _MAPPED_ROWS = 500, 60  # maximum number of rows in a pair plot, where more would overlap, and in a heat map


def write_rows(folder: Folder, program: Any, x: Batch, columns: Sequence[str], seed: int, prior: str) -> None:
    """Write figures of samples and of reconstructions. A figure that does not apply to the program is omitted.

    Args:
        folder: Folder of the figures.
        program: Object with ``model(x)`` and ``guide(x)``.
        x: Test rows, shape (N, columns), with the other arguments of the program if any.
        columns: Names of the columns. If empty, they are numbered.
        seed: Random seed of the draws.
        prior: File name of the figure of samples, without the suffix. The other one is reconstructions.png.
    """
    num_columns = x.x.shape[1]
    names = columns or column_names(num_columns)
    subset = x[: _ROWS if num_columns <= rows.MAX_PAIR_COLUMNS else _MAPPED_ROWS]
    with folder.drawing(prior):
        samples = sample_images(program, subset, seed, means=False)
        if samples is None:
            _LOG.info("No prior samples: the prior is improper.")
        else:
            title = "test rows and samples of the model"
            folder.save_figure(prior, rows.distributions(subset.x, samples, names, title))
    with folder.drawing("reconstructions"):
        if shown := reconstructions(program, subset, seed, draws=False):
            folder.save_figure("reconstructions", rows.reconstructions(subset.x, shown.first()[0], names))
