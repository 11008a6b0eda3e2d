r"""A folder of results with an exclusive lock and atomic writes."""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import numpy as np

from pyro_vae.errors import FigureError, UserError
from pyro_vae.evaluate import Scores
from pyro_vae.report.drawing import FIGURE_FORMATS, FigureFormat, style, write_figure
from pyro_vae.runs.files import atomic_write, remove_partial_files
from pyro_vae.runs.netcdf import to_netcdf

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LOG = logging.getLogger("pyro_vae")

LOCK = ".lock"
# Suffixes of the files that evaluations, samples and comparisons consist of.
_SUFFIXES = {".json", ".csv", ".nc", ".gif", *(f".{figure_format}" for figure_format in FIGURE_FORMATS)}


class RunFolderError(UserError):
    """Raised if a run folder cannot be used. The message gives the reason and a remedy."""


class Folder:
    """A folder of results. The entries in `contents` must not be symbolic links, which can point outside the folder.

    Args:
        path: Path of the folder.
        figures: Name of the subfolder for figures, or ``.`` for the folder itself.
        title: Name of the run, shown in every figure. If empty, it is the name of the folder.
    """

    contents: tuple[str, ...] = (LOCK, "figures")

    def __init__(self, path: Path | str, figures: str = "figures", title: str = "") -> None:
        self.path = Path(path)
        self.figures = self.path / figures
        self.figure_format: FigureFormat = "png"
        """Format in which figures are written."""
        self._title = title
        self.undrawn: dict[str, Exception] = {}
        """Errors of figures that could not be drawn, by the name of the file without its suffix."""
        self._lock = filelock.FileLock(self.path / LOCK)

    @property
    def title(self) -> str:
        """Name of the run, shown in every figure."""
        return self._title or os.path.basename(os.path.abspath(self.path))  # also of ``.``

    def lock(self) -> None:
        """Create the folder if needed and lock it, until `unlock` is called or this object or the process ends.

        Raises:
            RunFolderError: If another process holds the lock, an entry is a symbolic link, the lock is a hard link to
                a file with content, or the folder cannot be written.
        """
        self.reject_symlinks()
        if self._lock.is_locked:
            return
        lock = self.path / LOCK
        # Many versions of filelock empty the file that they lock.
        if lock.is_file() and lock.stat().st_nlink > 1 and lock.stat().st_size:
            raise RunFolderError(f"{lock} is another name (a hard link) of a file with content; remove it.")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(blocking=False)
        except filelock.Timeout as error:
            raise RunFolderError(f"{self.path} is being written by another process; wait until it ends.") from error
        except NotImplementedError:
            _LOG.warning("%s is on a file system without locks: make sure that only one process uses it.", self.path)
        except OSError as error:
            raise RunFolderError(f"{self.path} cannot be written ({error.strerror}); choose another --out.") from error
        for folder in (self.path, self.figures):
            remove_partial_files(folder)

    def unlock(self) -> None:
        """Release the lock."""
        self._lock.release()

    def reject_symlinks(self) -> None:
        """Raise RunFolderError if an entry in `contents` is a symbolic link."""
        for name in self.contents:
            if (self.path / name).is_symlink():
                raise RunFolderError(f"{self.path / name} is a symbolic link and is not written through; remove it.")

    def write_json(self, name: str, values: Mapping[str, Any] | Sequence[Any]) -> None:
        """Write a JSON file atomically. Non-finite numbers raise ValueError."""
        self.write_text(name, json.dumps(values, indent=2, allow_nan=False) + "\n")

    def write_csv(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write a CSV file atomically. All rows must have the keys of the first one."""
        with atomic_write(self.path / name) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def write_scores(self, scores: Scores) -> None:
        """Write the per-image scores to scores.nc, which `arviz.from_netcdf` can open."""
        self.write_per_image("scores", {k: v for k, v in vars(scores).items() if isinstance(v, np.ndarray)})

    def write_per_image(self, name: str, values: Mapping[str, np.ndarray], rows: str = "num_particles") -> None:
        """Write per-image arrays to <name>.nc, which `arviz.from_netcdf` can open.

        Args:
            name: Name of the file, without its suffix.
            values: Arrays by name, shape (N,) or (rows, N) for N images.
            rows: Name of the first of two dimensions.
        """
        content = to_netcdf(values, rows)
        with atomic_write(self.path / f"{name}.nc") as temporary:
            temporary.write_bytes(content)

    def clear(self) -> None:
        """Delete the files that this class writes, so that those of a former call are not mixed with new ones."""
        for folder in (self.path, self.figures):
            for path in folder.glob("*.*"):
                if path.suffix in _SUFFIXES and (path.is_symlink() or path.is_file()):
                    path.unlink()

    @contextmanager
    def drawing(self, name: str) -> Iterator[None]:
        """Draw a figure in the style of the package, and keep an error in `undrawn`.

        It must cost neither the numbers nor other figures.
        """
        try:
            with style():
                yield
        except Exception as error:  # noqa: BLE001 -- matplotlib may raise anything
            self.undrawn[name] = error

    def save_figure(self, name: str, figure: Figure, title: str = "") -> None:
        """Write a figure to <name>.<format> in the folder of figures, in place of one in another format.

        Args:
            name: Name of the file, without its suffix.
            figure: The figure.
            title: Title, if it is not the name of the run.
        """
        self.figures.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.figures / f"{name}.{self.figure_format}") as temporary:
            write_figure(figure, temporary, title or self.title, self.figure_format)
        for other in set(FIGURE_FORMATS) - {self.figure_format}:
            (self.figures / f"{name}.{other}").unlink(missing_ok=True)

    def save_animation(self, name: str, frames: Sequence[np.ndarray]) -> None:
        """Write an animation of ten frames per second to <name>.gif in the folder of figures.

        Args:
            name: Name of the file, without its suffix.
            frames: uint8 arrays, shape (height, width) or (height, width, 3).
        """
        from PIL import Image  # imported on use: `load_run` does not need it

        first, *rest = (Image.fromarray(frame) for frame in frames)
        with atomic_write(self.figures / f"{name}.gif") as temporary:
            first.save(temporary, format="GIF", save_all=True, append_images=rest, duration=100, loop=0)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file atomically."""
        with atomic_write(self.path / name) as temporary:
            temporary.write_text(text)


def raise_if_undrawn(*folders: Folder) -> None:
    """Raise FigureError if figures of some folders could not be drawn. All numbers must be written before.

    Raises:
        FigureError: With the path of each figure and the first line of its error.
    """
    undrawn = [
        f"{folder.figures / name}.{folder.figure_format} "
        f"({type(error).__name__}: {next(iter(str(error).splitlines()), '')[:120]})"
        for folder in folders
        for name, error in folder.undrawn.items()
    ]
    if undrawn:
        which = "A figure" if len(undrawn) == 1 else f"{len(undrawn)} figures"
        raise FigureError(f"{which} could not be drawn; all numbers are written: {', '.join(undrawn)}")
