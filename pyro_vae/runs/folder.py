r"""A folder of results with an exclusive lock and atomic writes."""

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
    """Raised if a run folder cannot be used. The message gives the reason and a remedy."""


class Folder:
    """A folder of results. The entries in `contents` must not be symbolic links, which can point outside the folder.

    Args:
        path: Path of the folder.
        figures: Name of the subfolder for figures, or ``.`` for the folder itself.
    """

    contents: tuple[str, ...] = (LOCK, "figures")

    def __init__(self, path: Path | str, figures: str = "figures") -> None:
        self.path = Path(path)
        self.figures = self.path / figures
        self._lock = filelock.FileLock(self.path / LOCK)

    def lock(self) -> None:
        """Create the folder if needed and lock it, until `unlock` is called or this object or the process ends.

        Raises:
            RunFolderError: If another process holds the lock, an entry is a symbolic link, the lock is a hard link to
                a file with content, or the folder cannot be written.
        """
        self.reject_symlinks()
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
        # HDF5 does not handle a full disk safely: let it write to a temporary folder, then copy the bytes.
        with TemporaryDirectory() as folder, atomic_write(self.path / f"{name}.nc") as temporary:
            write_netcdf(values, Path(folder) / "scores.nc", rows)
            temporary.write_bytes((Path(folder) / "scores.nc").read_bytes())

    def save_figure(self, name: str, figure: Figure) -> None:
        """Write a figure to <name>.png in the folder of figures."""
        self.figures.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.figures / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=130)

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
