r"""The parts of a batch, and which of them this process computes."""

from __future__ import annotations

from pyro_vae import parallel, ranks
from pyro_vae.errors import UserError
from pyro_vae.trace import Rows


class Parts:
    """Parts of the batches of a fit.

    Args:
        shards: Number of parts of a batch, or None for one part in each process.

    Attributes:
        number: Number of parts in all processes.
        own: Numbers of the parts that this process computes, which are consecutive.

    Raises:
        UserError: If there are more processes than shards.
    """

    def __init__(self, shards: int | None) -> None:
        parallel.on_first(lambda: _check_number(shards))  # raised by all processes, and printed by one
        self.shards = shards
        self.number = ranks.size() if shards is None else shards
        self.own = range(*Rows.split(self.number, ranks.rank(), ranks.size())[:2])

    def rows(self, total: int) -> list[Rows]:
        """Return the rows of the parts of this process, for a batch of `total` images."""
        return [Rows.split(total, part, self.number) for part in self.own]


def _check_number(shards: int | None) -> None:
    if shards is not None and shards < ranks.size():
        raise UserError(
            f"{ranks.size()} processes cannot share {shards} shards (--deterministic-shards): "
            "start at most one process for each."
        )
