r"""The run folder: configuration, metrics, checkpoints, summary, figures and per-image scores.

config.json   metrics.jsonl   summary.json   scores.nc   checkpoints/epoch-*.pt   figures/*.png
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pyro_vae.evaluate import Scores, write_netcdf

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
_KEPT_CHECKPOINTS = 2


class RunFolderError(ValueError):
    """A run folder that cannot be used; says why and what to do."""


class RunFolder:
    """A folder that holds one run, or one evaluation of it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def config_path(self) -> Path:
        """Where the configuration is."""
        return self.path / "config.json"

    @property
    def finished(self) -> bool:
        """Whether the run has written its summary, the last thing it does."""
        return (self.path / "summary.json").exists()

    def claim(self, config: Mapping[str, Any], *, resume: bool = False, overwrite: bool = False) -> None:
        """Make the folder this run's own and write its configuration.

        Raises:
            RunFolderError: the folder holds something and neither flag allows for it, it holds another run,
                or it cannot be written. Nothing has been changed then.
        """
        try:
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                self._reuse(config, resume, overwrite)
            self.path.mkdir(parents=True, exist_ok=True)
            self.write_json("config.json", config)  # first, so that a kill leaves a folder that is known as a run
            (self.path / "checkpoints").mkdir(exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"{self.path} cannot be written ({error.strerror}); choose another --out.") from error

    def _reuse(self, config: Mapping[str, Any], resume: bool, overwrite: bool) -> None:
        if not self.config_path.exists():
            raise RunFolderError(f"{self.path} exists and is no run folder; choose another --out.")
        if not (resume or overwrite):
            raise RunFolderError(f"{self.path} exists; add --resume or --overwrite, or choose another --out.")
        if resume:
            return self.check_same(config)
        for name in _OURS[1:]:  # config.json is replaced, never missing
            part = self.path / name
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)

    def check_same(self, config: Mapping[str, Any]) -> None:
        """Raise RunFolderError if the run in this folder has another configuration; it names what differs."""
        saved = json.loads(self.config_path.read_text())
        changed = sorted(key for key in config.keys() | saved.keys() if config.get(key) != saved.get(key))
        if changed:
            raise RunFolderError(
                f"{self.path} was started with another {', '.join(changed)}; repeat its flags, or choose another --out."
            )

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl; a line that a kill cut short is left out."""
        path = self.path / "metrics.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def keep_metrics(self, epochs: int) -> None:
        """Drop what was written after the first so many epochs, which a resumed run will write again."""
        kept = [line for line in self.metrics() if line["epoch"] < epochs]
        self.write_text("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Add one epoch; a number that is not finite is written as null."""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(finite) + "\n")

    def checkpoint_path(self, epochs: int) -> Path:
        """Return where the checkpoint after so many epochs belongs."""
        return self.path / "checkpoints" / f"epoch-{epochs:06d}.pt"

    def checkpoints(self) -> list[Path]:
        """Return the checkpoints, oldest first."""
        return sorted((self.path / "checkpoints").glob("epoch-*.pt"))

    def drop_old_checkpoints(self) -> None:
        """Keep the newest two."""
        for path in self.checkpoints()[:-_KEPT_CHECKPOINTS]:
            path.unlink()

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Write a JSON file whole or not at all."""
        self.write_text(name, json.dumps(values, indent=2, allow_nan=False) + "\n")

    def write_scores(self, scores: Scores) -> None:
        """Write the per-image scores as scores.nc, which ArviZ reads."""
        self.write_per_image("scores", {name: value for name, value in vars(scores).items() if name != "num_samples"})

    def write_per_image(self, name: str, values: Mapping[str, np.ndarray], rows: str = "num_particles") -> None:
        """Write arrays (N,), or (rows, N), as <name>.nc, which ArviZ reads."""
        write_netcdf(values, self.path / f"{name}.nc", rows)

    def save_figure(self, name: str, figure: Figure) -> None:
        """Write figures/<name>.png."""
        folder = self.path / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"{name}.png", dpi=130)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file whole or not at all."""
        temporary = self.path / f".{name}.tmp"
        temporary.write_text(text)
        os.replace(temporary, self.path / name)


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    packages = ("pyro_vae", "torch", "pyro-ppl", "arviz", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
