r"""New figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches, whose panels and labels do not overlap.

    Importing matplotlib takes half a second, so it is imported here, and neither by ``--help`` nor by `load_run`.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")
