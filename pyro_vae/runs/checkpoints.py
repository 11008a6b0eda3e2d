r"""The checkpoints of one run: which is the newest good one, and which are kept."""

from __future__ import annotations

import logging
import re
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pyro_vae.config.saved import add_missing_fields
from pyro_vae.errors import CheckpointError
from pyro_vae.runs import checkpoint
from pyro_vae.runs.checkpoint import State
from pyro_vae.runs.files import remove_partial_files, strip_folder

_LOG = logging.getLogger("pyro_vae")
_NAME = re.compile(r"step-(\d+)\.safetensors")
_KEPT = 2


class Checkpoints:
    """The checkpoints in a folder, one file for each step at which one was written.

    Args:
        folder: where they are; made by the first `save`.
        config: what tells this run from others, its configuration; a checkpoint of another run is not loaded. A program
            path/to/file.py:factory is told by its factory alone, since the file may have been moved.
        is_milestone: the steps that a run may go back to. What they are depends on nothing that differs from one
            machine, or one interruption, to another.
    """

    def __init__(
        self, folder: Path, config: Mapping[str, Any], is_milestone: Callable[[int], bool] = lambda step: False
    ) -> None:
        self.folder = folder
        self.config = dict(config)
        self.is_milestone = is_milestone

    def paths(self) -> dict[int, Path]:
        """Return the checkpoints by step, oldest first."""
        matches = ((_NAME.fullmatch(path.name), path) for path in self.folder.glob("step-*"))
        return dict(sorted((int(match[1]), path) for match, path in matches if match))

    def save(self, step: int, state: State) -> None:
        """Write the checkpoint of a step, then remove all but the newest two and the newest milestone.

        Raises:
            OSError: the folder cannot be written; the checkpoints that are there are untouched.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_partial_files(self.folder)
        path = self.folder / f"step-{step:09d}.safetensors"
        checkpoint.save(path, {"run": self.config, "step": step, "state": state})
        paths = self.paths()
        kept = [*list(paths)[-_KEPT:], *[old for old in paths if self.is_milestone(old)][-1:]]
        for old in paths.keys() - kept:
            paths[old].unlink()

    def _load(self, path: Path, step: int) -> State:
        """Return the state of a step, unless its file is damaged, or of another step or another run."""
        content = checkpoint.load(path)
        whole = isinstance(content, dict) and content.keys() == {"run", "step", "state"}
        if not (whole and isinstance(content["run"], dict) and isinstance(content["state"], dict)):
            raise CheckpointError(f"{path} is no checkpoint of a run.")
        # By what they look like: a file may be anybody's, and hold a tensor in the place of a number.
        if repr(content["step"]) != repr(step):
            named = reprlib.repr(content["step"])
            raise CheckpointError(f"{path} is the checkpoint of step {named}, under another's name.")
        saved, own = add_missing_fields(content["run"]), add_missing_fields(self.config)
        keys = saved.keys() | own.keys()
        mismatched = sorted(str(key) for key in keys if _comparable(saved, key) != _comparable(own, key))
        if mismatched:
            value = reprlib.repr(saved.get(mismatched[0]))
            raise CheckpointError(f"{path} is of another run: its {mismatched[0][:40]} is {value}.")
        return content["state"]

    def newest(self, *, milestone: bool = False) -> tuple[int, State] | None:
        """Return the step and the state of the newest good checkpoint, with a warning for each that is not.

        Args:
            milestone: of the milestones alone.

        Returns:
            None where there are no checkpoints.

        Raises:
            CheckpointError: there are, and none is good; names them all.
        """
        errors = []
        for step, path in reversed(self.paths().items()):
            if milestone and not self.is_milestone(step):
                continue
            try:
                state = self._load(path, step)
            except CheckpointError as error:
                errors.append(str(error))
                continue
            for reason in errors:
                _LOG.warning("%s The checkpoint of step %d is taken instead.", reason, step)
            return step, state
        if errors:
            raise CheckpointError(f"No checkpoint can be loaded. {' '.join(errors)}")
        return None

    def quarantine_after(self, step: int) -> None:
        """Give later checkpoints, which could not be loaded, names under which nobody looks for them."""
        for later, path in self.paths().items():
            if later > step:
                path.replace(path.with_name(f"unreadable-{path.name}"))

    def delete_after(self, step: int) -> None:
        """Remove the later checkpoints, of a course that the run has given up."""
        for later, path in self.paths().items():
            if later > step:
                path.unlink()


def _comparable(config: Mapping[str, Any], key: str) -> str:
    """Return what a value of a run looks like, of a program in a file without the path."""
    value = config.get(key)
    return repr(strip_folder(value) if key == "program" and isinstance(value, str) else value)
