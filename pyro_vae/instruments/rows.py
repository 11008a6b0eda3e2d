r"""Figures of data that are rows of numbers: what a program draws beside them, and what it makes of them."""

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
_ROWS, _MAPPED_ROWS = 500, 60  # of a pair plot, where more points hide each other, and of a heat map


def write_rows(folder: Folder, program: Any, x: Batch, columns: Sequence[str], seed: int, prior: str) -> None:
    """Write reconstructions.png and, under the name given, a figure of samples beside data; as far as there are some.

    Args:
        folder: where they are written.
        program: an object with ``model(x)`` and ``guide(x)``.
        x: test rows (N, columns), beside the program's other arguments if it has any.
        columns: names; numbered where there are none.
        seed: of the draws.
        prior: name of the figure of samples.
    """
    num_columns = x.x.shape[1]
    names = columns or column_names(num_columns)
    subset = x[: _ROWS if num_columns <= rows.MAX_PAIR_COLUMNS else _MAPPED_ROWS]
    samples = sample_images(program, subset, seed, means=False)
    if samples is None:
        _LOG.info("The prior is improper: there are no prior samples.")
    else:
        title = "test rows and samples of the model"
        folder.save_figure(prior, rows.distributions(subset.x, samples, names, title))
    if shown := reconstructions(program, subset, seed, draws=False):
        folder.save_figure("reconstructions", rows.reconstructions(subset.x, shown.first()[0], names))
