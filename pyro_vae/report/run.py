r"""The run folder: configuration, metrics, checkpoints, summary, figures and per-image scores.

config.json   metrics.jsonl   summary.json   scores.nc   checkpoints/step-*.safetensors   figures/*.png
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from matplotlib.figure import Figure

from pyro_vae.evaluate import Scores, write_netcdf
from pyro_vae.files import is_unfinished, remove_unfinished, replacing

_LOG = logging.getLogger("pyro_vae")

_LOCK = ".lock"
_OURS = (
    "config.json",
    "metrics.jsonl",
    "summary.json",
    "scores.nc",
    "checkpoints",
    "figures",
    "evaluation",
    "samples",
)


class RunFolderError(ValueError):
    """A run folder that cannot be used; says why and what to do."""


class RunFolder:
    """A folder that holds one run, or one evaluation of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = filelock.FileLock(path / _LOCK)

    @property
    def config_path(self) -> Path:
        """Where the configuration is."""
        return self.path / "config.json"

    @property
    def is_run(self) -> bool:
        """Whether there is a configuration; not so for a path that no file can have."""
        return os.path.isfile(self.config_path)

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are."""
        return self.path / "checkpoints"

    @property
    def finished(self) -> bool:
        """Whether the run has written its summary, the last thing it does."""
        return (self.path / "summary.json").exists()

    def claim(self, config: Mapping[str, Any], *, resume: bool = False, overwrite: bool = False) -> None:
        """Make the folder this object's own, as by `lock`, and write the configuration of its run.

        Raises:
            RunFolderError: the folder holds something and neither flag allows for it, it holds another run, another
                process writes to it, or it cannot be written. Nothing has been changed then.
        """
        try:
            self._check(config, resume, overwrite)
            self.lock()
            self._check(config, resume, overwrite)  # what another process may have made of it meanwhile
            if overwrite:
                for name in _OURS[1:]:  # config.json is replaced, never missing
                    part = self.path / name
                    shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
            self.write_json("config.json", config)  # first, so that a kill leaves a folder that is known as a run
            self.checkpoints.mkdir(exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"{self.path} cannot be written ({error.strerror}); choose another --out.") from error

    def lock(self) -> None:
        """Make the folder where it is not there, and keep others out of it while this object and the process live.

        Raises:
            RunFolderError: another process is in it, or something in it would lead what is written elsewhere.
            OSError: it cannot be written.
        """
        self.refuse_links()
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(blocking=False)
        except filelock.Timeout as error:
            raise RunFolderError(f"{self.path} is being written by another process; wait until it ends.") from error
        except NotImplementedError:
            _LOG.warning("%s is on a file system without locks: see to it that one process writes there.", self.path)
        for folder in (self.path, self.path / "figures"):
            remove_unfinished(folder)

    def refuse_links(self) -> None:
        """Raise RunFolderError if something of ours in the folder is a link, which may lead anywhere."""
        for name in (_LOCK, *_OURS):
            if (self.path / name).is_symlink():
                raise RunFolderError(f"{self.path / name} is a symbolic link, which is not written through; remove it.")

    def _check(self, config: Mapping[str, Any], resume: bool, overwrite: bool) -> None:
        """Refuse a folder that holds something which the flags do not allow for."""
        if not self.path.exists():
            return
        # A kill before there was a configuration has left nothing to lose.
        if self.path.is_dir() and all(p.name == _LOCK or is_unfinished(p) for p in self.path.iterdir()):
            return
        if not self.is_run:
            raise RunFolderError(f"{self.path} exists and is no run folder; choose another --out.")
        if not (resume or overwrite):
            raise RunFolderError(f"{self.path} exists; add --resume or --overwrite, or choose another --out.")
        if resume:
            self.check_same(config)

    def check_same(self, config: Mapping[str, Any]) -> None:
        """Raise RunFolderError if the run in this folder has another configuration; it names what differs."""
        saved = self.config()
        changed = sorted(key for key in config.keys() | saved.keys() if config.get(key) != saved.get(key))
        if changed:
            raise RunFolderError(
                f"{self.path} was started with another {', '.join(changed)}; repeat its flags, or choose another --out."
            )

    def config(self) -> dict[str, Any]:
        """Return the configuration as it was written.

        Raises:
            RunFolderError: it is damaged.
        """
        try:
            return dict(json.loads(self.config_path.read_text()))
        except (ValueError, TypeError, RecursionError) as error:
            raise RunFolderError(f"{self.config_path} is damaged: it holds no configuration.") from error

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl; a line that a kill cut short is left out.

        Raises:
            RunFolderError: a line is damaged.
        """
        path = self.path / "metrics.jsonl"
        lines = path.read_text(errors="replace").split("\n")[:-1] if path.exists() else []
        try:
            return [dict(json.loads(line)) for line in lines]
        except (ValueError, TypeError, RecursionError) as error:
            raise RunFolderError(f"{path} is damaged: a line of it is no epoch. Remove that line.") from error

    def keep_metrics(self, epochs: int) -> None:
        """Drop what was written after the first so many epochs, which a resumed run will write again."""
        kept = [line for line in self.metrics() if line["epoch"] < epochs]
        self.write_text("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Add one epoch, on disk before this returns; a number that is not finite is written as null."""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(finite) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Write a JSON file whole or not at all."""
        self.write_text(name, json.dumps(values, indent=2, allow_nan=False) + "\n")

    def write_scores(self, scores: Scores) -> None:
        """Write the per-image scores as scores.nc, which ArviZ reads."""
        self.write_per_image("scores", {name: value for name, value in vars(scores).items() if name != "num_samples"})

    def write_per_image(self, name: str, values: Mapping[str, np.ndarray], rows: str = "num_particles") -> None:
        """Write arrays (N,), or (rows, N), as <name>.nc, which ArviZ reads."""
        with replacing(self.path / f"{name}.nc") as temporary:
            write_netcdf(values, temporary, rows)

    def save_figure(self, name: str, figure: Figure) -> None:
        """Write figures/<name>.png."""
        folder = self.path / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=130)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file whole or not at all."""
        with replacing(self.path / name) as temporary:
            temporary.write_text(text)


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    packages = ("pyro_vae", "torch", "pyro-ppl", "arviz", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
