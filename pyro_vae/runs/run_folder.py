r"""The run folder: configuration, metrics, checkpoints, summary, figures and per-image scores.

config.json   metrics.jsonl   summary.json   scores.nc   checkpoints/step-*.safetensors   figures/
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pyro_vae.config.choices import AUTO, LEFT_TO_DATA
from pyro_vae.config.saved import add_missing_fields
from pyro_vae.runs.files import identity, is_partial, strip_folder
from pyro_vae.runs.folder import LOCK, Folder, RunFolderError

_ADVICE = "add --resume or --overwrite, or choose another --out"
_CONTENTS = (
    "config.json",
    "program.json",
    "metrics.jsonl",
    "summary.json",
    "scores.nc",
    "checkpoints",
    "figures",
    "evaluation",
    "samples",
)


def _all_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with the fields of this version, and the program in a file as ``:factory``."""
    full = add_missing_fields(config)
    return full | {"program": strip_folder(program)} if isinstance(program := full.get("program"), str) else full


class RunFolder(Folder):
    """The folder of one run."""

    contents = (LOCK, *_CONTENTS)

    @property
    def config_path(self) -> Path:
        """Path of config.json."""
        return self.path / "config.json"

    @property
    def is_run(self) -> bool:
        """Whether the folder contains a configuration."""
        return os.path.isfile(self.config_path)  # unlike `Path.is_file`, False for names that are too long

    @cached_property
    def evaluation(self) -> Folder:
        """Subfolder for the results of `scripts/evaluate.py`."""
        return Folder(self.path / "evaluation", title=self.title)

    @cached_property
    def samples(self) -> Folder:
        """Subfolder for the figures of `scripts/sample.py`."""
        return Folder(self.path / "samples", figures=".", title=self.title)

    @property
    def checkpoints(self) -> Path:
        """Path of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def finished(self) -> bool:
        """Whether the run is finished: summary.json is the last file that a fit writes."""
        return os.path.isfile(self.path / "summary.json")

    def create(self, config: Mapping[str, Any], *, resume: bool = False, overwrite: bool = False) -> None:
        """Create and lock the folder, and write the configuration of its run.

        Args:
            config: Configuration as JSON values.
            resume: Whether to accept an existing run with this configuration, except for fields that may change while
                a run continues; see `files.identity`.
            overwrite: Whether to delete an existing run.

        Raises:
            RunFolderError: If neither flag permits the content of the folder, if it contains a run with a different
                configuration or other files, if another process writes to it, or if it cannot be written. A folder
                that is rejected is unchanged.
        """
        try:
            for _ in range(2):  # again under the lock, before which another process may have written
                self.check(config, resume=resume, overwrite=overwrite)
                self.lock()
            if overwrite:
                self._clear()
            self.write_json("config.json", config)  # first, so that a crash leaves a recognizable run
            self.checkpoints.mkdir(exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"{self.path} cannot be written ({error.strerror}); choose another --out.") from error

    def reopen(self) -> None:
        """Remove the summary of a run that has been finished and takes more steps."""
        (self.path / "summary.json").unlink(missing_ok=True)

    def _clear(self) -> None:
        for folder in (self.evaluation, self.samples):
            if folder.path.is_dir():
                folder.lock()  # raises if an evaluation is still writing
        # Delete summary.json first, then the checkpoints: a crash in between leaves a run that can be resumed, from a
        # checkpoint or from the start. config.json is replaced, never missing.
        for name in sorted(_CONTENTS[1:], key=lambda name: (name != "summary.json", name != "checkpoints")):
            part = self.path / name
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
        for folder in (self.evaluation, self.samples):
            folder.unlock()

    def check(self, config: Mapping[str, Any], *, resume: bool = False, overwrite: bool = False) -> None:
        """Raise RunFolderError unless the flags permit the content of the folder, as for `create`."""
        if not self.path.exists():
            return
        # Only leftovers of a crash before the configuration was written: nothing to lose.
        if self.path.is_dir() and all(p.name == LOCK or is_partial(p) for p in self.path.iterdir()):
            return
        if not self.is_run:
            raise RunFolderError(f"{self.path} exists and is not a run folder; choose another --out.")
        if not (resume or overwrite):
            changed = self._changed(config)
            what = f" with different values of {', '.join(changed)}" if changed else ""
            advice = "choose another --out, or replace it with --overwrite" if changed else _ADVICE
            raise RunFolderError(f"{self.path} exists{what}; {advice}.")
        if resume:
            self._refuse(self._changed(config, identity))

    def check_config_matches(self, config: Mapping[str, Any]) -> None:
        """Raise RunFolderError, which names the fields that differ, if the folder has a run of another configuration.

        Programs in files are compared by their factory only, since the file may have been moved.
        """
        self._refuse(self._changed(config))

    def _refuse(self, changed: Sequence[str]) -> None:
        if changed:
            raise RunFolderError(
                f"{self.path} was started with different values of {', '.join(changed)}; repeat its flags, or choose "
                "another --out."
            )

    def _changed(
        self, config: Mapping[str, Any], part: Callable[[Mapping[str, Any]], dict[str, Any]] = _all_fields
    ) -> list[str]:
        """Return the fields, of those in a part of each configuration, that differ from those of the run."""
        saved, given = part(self.config()), part(config)
        # Fields that are auto in the flags have the value that the data set determined when the run was started.
        given |= {name: saved.get(name) for name in LEFT_TO_DATA if given.get(name) == AUTO}
        return sorted(key for key in given.keys() | saved.keys() if given.get(key) != saved.get(key))

    def config(self) -> dict[str, Any]:
        """Return the configuration as written, as JSON values.

        Raises:
            RunFolderError: If it is missing or damaged.
        """
        try:
            return dict(json.loads(self.config_path.read_text()))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise RunFolderError(f"{self.config_path} is damaged: it does not contain a configuration.") from error

    def metrics(self) -> list[dict[str, Any]]:
        """Return the epochs in metrics.jsonl, one per line. A truncated last line, left by a crash, is ignored.

        Raises:
            RunFolderError: If a line is damaged.
        """
        path = self.path / "metrics.jsonl"
        lines = path.read_text(errors="replace").split("\n")[:-1] if path.exists() else []
        try:
            epochs = [dict(json.loads(line)) for line in lines]
            if any(type(epoch["epoch"]) is not int for epoch in epochs):
                raise TypeError("The index of an epoch must be an integer.")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise RunFolderError(f"{path} is damaged: a line is not the record of an epoch.") from error
        return epochs

    def truncate_metrics(self, epochs: int) -> None:
        """Keep the first `epochs` epochs in metrics.jsonl; a resumed run will write the later ones again.

        Raises:
            RunFolderError: If one of the first epochs is missing or repeated.
        """
        kept = [line for line in self.metrics() if line["epoch"] < epochs]
        if [line["epoch"] for line in kept] != list(range(epochs)):
            raise RunFolderError(f"{self.path / 'metrics.jsonl'} must contain each of the first {epochs} epochs once.")
        self.write_text("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))

    def append_epoch(self, line: Mapping[str, Any]) -> None:
        """Append one epoch to metrics.jsonl and sync it to disk; non-finite numbers are written as null."""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(finite) + "\n")
            file.flush()
            os.fsync(file.fileno())


def seed_path(path: Path, seed: int, first: int) -> Path:
    """Return the path of the run of a seed, given that of the first of several seeds."""
    return path if seed == first else path.with_name(f"{path.name}-seed{seed}")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages on which results depend."""
    packages = ("pyro_vae", "torch", "pyro-ppl", "arviz", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
