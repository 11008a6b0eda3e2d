r"""A folder of results, which one process writes to at a time, whole files or none, and nowhere else."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import filelock
import numpy as np

from pyro_vae.errors import UserError
from pyro_vae.evaluate import Scores
from pyro_vae.runs.files import atomic_write, remove_partial_files
from pyro_vae.runs.netcdf import write_netcdf

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LOG = logging.getLogger("pyro_vae")

LOCK = ".lock"


class RunFolderError(UserError):
    """A run folder that cannot be used; says why and what to do."""


class Folder:
    """A folder of results; `contents` are the names in it that must not be links, which may lead anywhere.

    Args:
        path: of the folder.
        figures: the folder in it for figures.
    """

    contents: tuple[str, ...] = (LOCK, "figures")

    def __init__(self, path: Path, figures: str = "figures") -> None:
        self.path = path
        self.figures = path / figures
        self._lock = filelock.FileLock(path / LOCK)

    def lock(self) -> None:
        """Make the folder where it is not there, and keep others out of it while this object and the process live.

        Raises:
            RunFolderError: another process is in it, or something in it would lead what is written elsewhere.
            OSError: it cannot be written.
        """
        self.reject_symlinks()
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(blocking=False)
        except filelock.Timeout as error:
            raise RunFolderError(f"{self.path} is being written by another process; wait until it ends.") from error
        except NotImplementedError:
            _LOG.warning("%s is on a file system without locks: see to it that one process writes there.", self.path)
        for folder in (self.path, self.figures):
            remove_partial_files(folder)

    def unlock(self) -> None:
        """Let others in again."""
        self._lock.release()

    def reject_symlinks(self) -> None:
        """Raise RunFolderError if a part of the folder is a link."""
        for name in self.contents:
            if (self.path / name).is_symlink():
                raise RunFolderError(f"{self.path / name} is a symbolic link, which is not written through; remove it.")

    def write_json(self, name: str, values: Mapping[str, Any] | Sequence[Any]) -> None:
        """Write a JSON file whole or not at all."""
        self.write_text(name, json.dumps(values, indent=2, allow_nan=False) + "\n")

    def write_csv(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows of the same columns as CSV, whole or not at all."""
        with atomic_write(self.path / name) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def write_scores(self, scores: Scores) -> None:
        """Write the per-image scores as scores.nc, which ArviZ reads."""
        self.write_per_image("scores", {k: v for k, v in vars(scores).items() if isinstance(v, np.ndarray)})

    def write_per_image(self, name: str, values: Mapping[str, np.ndarray], rows: str = "num_particles") -> None:
        """Write arrays (N,), or (rows, N), as <name>.nc, which ArviZ reads."""
        # HDF5 does not survive a disk that is full, so that its file comes to this one as bytes.
        with TemporaryDirectory() as folder, atomic_write(self.path / f"{name}.nc") as temporary:
            write_netcdf(values, Path(folder) / "scores.nc", rows)
            temporary.write_bytes((Path(folder) / "scores.nc").read_bytes())

    def save_figure(self, name: str, figure: Figure) -> None:
        """Write <name>.png among the figures."""
        self.figures.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.figures / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=130)

    def save_animation(self, name: str, frames: Sequence[np.ndarray]) -> None:
        """Write <name>.gif of frames (height, width) or (height, width, 3), uint8, ten a second, among the figures."""
        from PIL import Image  # on use: `load_run` needs none

        first, *rest = (Image.fromarray(frame) for frame in frames)
        with atomic_write(self.figures / f"{name}.gif") as temporary:
            first.save(temporary, format="GIF", save_all=True, append_images=rest, duration=100, loop=0)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file whole or not at all."""
        with atomic_write(self.path / name) as temporary:
            temporary.write_text(text)
