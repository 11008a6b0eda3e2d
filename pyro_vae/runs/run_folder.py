r"""The run folder: configuration, metrics, checkpoints, summary, figures and per-image scores.

config.json   metrics.jsonl   summary.json   scores.nc   checkpoints/step-*.safetensors   figures/*.png
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

from pyro_vae.config.choices import AUTO, LEFT_TO_DATA
from pyro_vae.config.saved import add_missing_fields
from pyro_vae.runs.files import is_partial, strip_folder
from pyro_vae.runs.folder import LOCK, Folder, RunFolderError

_CONTENTS = (
    "config.json",
    "metrics.jsonl",
    "summary.json",
    "scores.nc",
    "checkpoints",
    "figures",
    "evaluation",
    "samples",
)


class RunFolder(Folder):
    """The folder of one run."""

    contents = (LOCK, *_CONTENTS)

    @property
    def config_path(self) -> Path:
        """Where the configuration is."""
        return self.path / "config.json"

    @property
    def is_run(self) -> bool:
        """Whether there is a configuration; not so for a path that no file can have."""
        return os.path.isfile(self.config_path)

    @property
    def evaluation(self) -> Folder:
        """Where another evaluation of the run is written."""
        return Folder(self.path / "evaluation")

    @property
    def samples(self) -> Folder:
        """Where what the run generates is written."""
        return Folder(self.path / "samples", figures=".")

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are."""
        return self.path / "checkpoints"

    @property
    def finished(self) -> bool:
        """Whether the run has written its summary, the last thing it does."""
        return os.path.isfile(self.path / "summary.json")

    def create(self, config: Mapping[str, Any], *, resume: bool = False, overwrite: bool = False) -> None:
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
                self._clear()
            self.write_json("config.json", config)  # first, so that a kill leaves a folder that is known as a run
            self.checkpoints.mkdir(exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"{self.path} cannot be written ({error.strerror}); choose another --out.") from error

    def _clear(self) -> None:
        for folder in (self.evaluation, self.samples):
            if folder.path.is_dir():
                folder.lock()  # nobody is writing there
        # First what says that the run is finished, then its checkpoints: a kill in between leaves a run that goes on
        # from where its checkpoints say, or from its beginning. config.json is replaced, never missing.
        for name in sorted(_CONTENTS[1:], key=lambda name: (name != "summary.json", name != "checkpoints")):
            part = self.path / name
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)

    def _check(self, config: Mapping[str, Any], resume: bool, overwrite: bool) -> None:
        """Refuse a folder that holds something which the flags do not allow for."""
        if not self.path.exists():
            return
        # A kill before there was a configuration has left nothing to lose.
        if self.path.is_dir() and all(p.name == LOCK or is_partial(p) for p in self.path.iterdir()):
            return
        if not self.is_run:
            raise RunFolderError(f"{self.path} exists and is no run folder; choose another --out.")
        if not (resume or overwrite):
            raise RunFolderError(f"{self.path} exists; add --resume or --overwrite, or choose another --out.")
        if resume:
            self.check_config_matches(config)

    def check_config_matches(self, config: Mapping[str, Any]) -> None:
        """Raise RunFolderError if the run in this folder has another configuration; it names what differs.

        A program in a file is told by its factory: the file may lie elsewhere now.
        """
        saved, given = (_without_path(add_missing_fields(each)) for each in (self.config(), config))
        # What is left to the data is what the data have decided.
        given |= {name: saved.get(name) for name in LEFT_TO_DATA if given.get(name) == AUTO}
        changed = sorted(key for key in given.keys() | saved.keys() if given.get(key) != saved.get(key))
        if changed:
            raise RunFolderError(
                f"{self.path} was started with another {', '.join(changed)}; repeat its flags, or choose another --out."
            )

    def config(self) -> dict[str, Any]:
        """Return the configuration as it was written.

        Raises:
            RunFolderError: it is damaged, or not there.
        """
        try:
            return dict(json.loads(self.config_path.read_text()))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise RunFolderError(f"{self.config_path} is damaged: it holds no configuration.") from error

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl; a line that a kill cut short is left out.

        Raises:
            RunFolderError: a line is damaged.
        """
        path = self.path / "metrics.jsonl"
        lines = path.read_text(errors="replace").split("\n")[:-1] if path.exists() else []
        try:
            epochs = [dict(json.loads(line)) for line in lines]
            if any(type(epoch["epoch"]) is not int for epoch in epochs):
                raise TypeError("an epoch has a number")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise RunFolderError(f"{path} is damaged: a line of it is no epoch.") from error
        return epochs

    def truncate_metrics(self, epochs: int) -> None:
        """Drop what was written after the first so many epochs, which a resumed run will write again.

        Raises:
            RunFolderError: one of these is not there.
        """
        kept = [line for line in self.metrics() if line["epoch"] < epochs]
        if [line["epoch"] for line in kept] != list(range(epochs)):
            raise RunFolderError(f"{self.path / 'metrics.jsonl'} does not hold each of the first {epochs} epochs once.")
        self.write_text("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))

    def append_epoch(self, line: Mapping[str, Any]) -> None:
        """Add one epoch, on disk before this returns; a number that is not finite is written as null."""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(finite) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _without_path(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration without the path in path/to/file.py:factory, where its program is in a file."""
    return {
        key: strip_folder(value) if key == "program" and isinstance(value, str) else value
        for key, value in config.items()
    }


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    packages = ("pyro_vae", "torch", "pyro-ppl", "arviz", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
