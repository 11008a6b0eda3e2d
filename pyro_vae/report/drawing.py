r"""New figures, the style of all of them, and how they are written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pyro_vae.report.labels import figure_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

FigureFormat = Literal["png", "pdf", "svg"]
FIGURE_FORMATS: tuple[FigureFormat, ...] = get_args(FigureFormat)

_DPI = 130  # dots per inch of a PNG file
_PRINTED_DPI = 300  # dots per inch of the images in a vector graphic
_TITLE_HEIGHT = 0.22  # inches
_STYLE = {
    "font.size": 9,
    "figure.titlesize": 11,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 8,
    "legend.title_fontsize": 8,
    "pdf.fonttype": 42,  # text that can be searched and edited
    "svg.hashsalt": "pyro_vae",  # equal figures have equal files
}
# Entries without the time of writing, so that equal figures have equal files.
_METADATA: dict[FigureFormat, Mapping[str, Any]] = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}


@contextmanager
def style() -> Iterator[None]:
    """Draw and write in the style of the package: matplotlib's defaults with few changes, whatever its settings are.

    Importing matplotlib takes half a second, so it is imported on use, and neither by ``--help`` nor by `load_run`.
    """
    import matplotlib.style

    with matplotlib.style.context(["default", _STYLE]):
        yield


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches, whose panels and labels do not overlap."""
    from matplotlib.figure import Figure  # imported on use, see `style`

    return Figure(figsize=(width, height), layout="constrained")


def legend_below(figure: Figure) -> Legend:
    """Add a legend of the first panel below all panels, where it covers no points, and make room for it."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.2 * len(labels))
    return figure.legend(handles, labels, loc="outside lower center", frameon=False)


def interpolation(pixels: int, width: float) -> str:
    """Return how to show an image: enlarged by nearest neighbor, or reduced without aliasing.

    Args:
        pixels: Width of the image, in pixels.
        width: Width at which it is shown, in inches.
    """
    return "nearest" if pixels <= width * _DPI else "hanning"


def write_figure(figure: Figure, path: Path, title: str, file_format: FigureFormat) -> None:
    """Write a figure to a file, with a title above its own one. A title that is too wide is reduced in size."""
    heading = figure.suptitle("\n".join(filter(None, (figure_label(title), figure.get_suptitle()))))
    share = heading.get_window_extent().width / figure.bbox.width
    heading.set_fontsize(float(heading.get_fontsize()) * 0.98 / max(share, 0.98))
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + _TITLE_HEIGHT)
    dpi = _DPI if file_format == "png" else _PRINTED_DPI
    figure.savefig(path, format=file_format, dpi=dpi, metadata=_METADATA[file_format])
