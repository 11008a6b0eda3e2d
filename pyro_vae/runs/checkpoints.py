r"""The checkpoints of one run: retention, and lookup of the newest valid one."""

from __future__ import annotations

import logging
import re
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pyro_vae.errors import CheckpointError
from pyro_vae.runs import checkpoint
from pyro_vae.runs.checkpoint import State
from pyro_vae.runs.files import identity, remove_partial_files

_LOG = logging.getLogger("pyro_vae")
_NAME = re.compile(r"step-(\d+)\.safetensors")
_KEPT = 2  # newest checkpoints, in addition to the newest milestone


class Checkpoints:
    """The checkpoints in a folder, one file per saved step.

    Args:
        folder: Folder of the files. The first `save` creates it.
        config: Configuration of the run, which identifies it: checkpoints of other runs are not loaded; see
            `identity`.
        is_milestone: Function of the step that returns whether a run may roll back to it. To keep rollbacks
            reproducible, it must not depend on the machine or on interruptions.
    """

    def __init__(
        self, folder: Path | str, config: Mapping[str, Any], is_milestone: Callable[[int], bool] = lambda step: False
    ) -> None:
        self.folder = Path(folder)
        self.config = dict(config)
        self.is_milestone = is_milestone

    def paths(self) -> dict[int, Path]:
        """Return the path of each checkpoint by step, oldest first."""
        matches = ((_NAME.fullmatch(path.name), path) for path in self.folder.glob("step-*"))
        return dict(sorted((int(match[1]), path) for match, path in matches if match))

    def save(self, step: int, state: State) -> None:
        """Save the checkpoint of a step, then remove all except the newest two and the newest milestone.

        Raises:
            OSError: If the folder cannot be written. Existing checkpoints are unchanged.
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
        """Load the state of a step, or raise CheckpointError if the file is damaged or belongs elsewhere."""
        content = checkpoint.load(path)
        has_keys = isinstance(content, dict) and content.keys() == {"run", "step", "state"}
        if not (has_keys and isinstance(content["run"], dict) and isinstance(content["state"], dict)):
            raise CheckpointError(f"{path} is not the checkpoint of a run.")
        # Compare by repr: the file is untrusted, and may contain a tensor instead of a number.
        if repr(content["step"]) != repr(step):
            saved_step = reprlib.repr(content["step"])
            raise CheckpointError(f"{path} contains the checkpoint of step {saved_step}, not of step {step}.")
        saved, expected = identity(content["run"]), identity(self.config)
        keys = saved.keys() | expected.keys()
        mismatched = sorted(str(key) for key in keys if repr(saved.get(key)) != repr(expected.get(key)))
        if mismatched:
            value = reprlib.repr(content["run"].get(mismatched[0]))
            raise CheckpointError(f"{path} belongs to another run: its {mismatched[0][:40]} is {value}.")
        return content["state"]

    def newest(self, *, milestone: bool = False) -> tuple[int, State] | None:
        """Load the newest valid checkpoint; log a warning for each newer one that is invalid.

        Args:
            milestone: Whether to consider only milestones.

        Returns:
            The step and the state, or None if there are no checkpoints.

        Raises:
            CheckpointError: If there are checkpoints and none is valid. The message names all of them.
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
                _LOG.warning("%s Using the checkpoint of step %d instead.", reason, step)
            return step, state
        if errors:
            raise CheckpointError(f"No checkpoint can be loaded. {' '.join(errors)}")
        return None

    def quarantine_after(self, step: int) -> None:
        """Rename the checkpoints after a step, which could not be loaded, so that they are no longer considered."""
        for later, path in self.paths().items():
            if later > step:
                path.replace(path.with_name(f"unreadable-{path.name}"))

    def delete_after(self, step: int) -> None:
        """Delete the checkpoints after a step to which the run has rolled back."""
        for later, path in self.paths().items():
            if later > step:
                path.unlink()
