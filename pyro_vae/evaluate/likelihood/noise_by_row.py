r"""Importance samples whose noise depends on the image only, not on the other images of the batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_vae.trace import Batch, EagerBackend, Layout, Program, derive_seed
from pyro_vae.trace.isolation import seed_rng


class NoiseByRow(EagerBackend):
    """Draws the particles of each row by itself, with noise that depends on the row and a seed only.

    Args:
        seed: Random seed.
        num_samples: Number of particles of each row, all of which are drawn with the first ones.
    """

    def __init__(self, seed: int, num_samples: int) -> None:
        super().__init__()
        self._seed, self._num_samples = seed, num_samples
        self._drawn: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None
        self._used = 0

    def start_batch(self) -> None:
        """Forget the particles of the last rows."""
        self._drawn, self._used = None, 0

    def draw(
        self, guide: Program, batch: Batch, num_samples: int, layout: Layout
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the next particles of each row, and their scores. See `densities.draw`."""
        if self._drawn is None:
            rows = []
            for row in batch.split(1):
                content = hashlib.blake2b(row.x.cpu().numpy().tobytes()).hexdigest()
                with seed_rng(row.x, derive_seed(self._seed, "row", content)):
                    rows.append(super().draw(guide, row, self._num_samples, layout))
            self._drawn = _join_rows([values for values, _ in rows]), _join_rows([log_q for _, log_q in rows])
        start, self._used = self._used, self._used + num_samples
        values, log_q = ({name: t[start : self._used] for name, t in part.items()} for part in self._drawn)
        return values, log_q


def _join_rows(rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Join values (K, 1, ...) of single rows by site."""
    return {name: torch.cat([row[name] for row in rows], 1) for name in rows[0]}
