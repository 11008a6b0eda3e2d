r"""A run that has been fitted, as it stands in its folder: its program with its weights, and its images.

No code that a run folder names is run, and nothing is downloaded to a place that it names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from pyro_vae import config, data, programs
from pyro_vae.infer import History, load_parameters
from pyro_vae.report import Labelled, RunFolder, RunFolderError
from pyro_vae.saved import read_config
from pyro_vae.trace import is_density, why_no_density


@dataclass(frozen=True)
class Fitted:
    """A program with its fitted parameters, in the param store where it has some there."""

    settings: config.Config
    images: data.Images
    program: Any
    look: Callable[..., Tensor]
    density: bool
    lacking: str | None
    """Why the program has no log weights, or None."""

    def observed(self, split: str) -> Tensor:
        """Return the images of a split (N, *pixels) as the program observes them, the same every time."""
        return data.observe_once(getattr(self.images, split), self.look)

    def labelled(self, split: str) -> Labelled:
        """Return the images of a split as the program observes them, with the first of their labels.

        Raises:
            ValueError: they have none.
        """
        labels = self.images.labels
        if labels is None:
            raise ValueError(f"{self.images.name} has no labels: choose other --data.")
        return Labelled(self.observed(split), labels.of(labels.names[0], split).cpu().numpy())


def settings_of(folder: RunFolder, changes: Mapping[str, Any]) -> config.Config:
    """Return the configuration of a run that has a checkpoint, with changes.

    Raises:
        ValueError: it is no run folder, it has no checkpoint, its configuration cannot be read, or it is of somebody's
            own program, which `changes` does not repeat.
    """
    if not folder.is_run:
        raise RunFolderError(f"{folder.path} is no run folder: it has no config.json.")
    folder.refuse_links()
    saved = read_config(folder.config_path)
    if not History(folder.checkpoints, saved.to_json()).paths():
        raise RunFolderError(f"{folder.path} has no checkpoint yet; fit it first.")
    if saved.program != changes.get("program", saved.program if saved.program in programs.PROGRAMS else None):
        raise ValueError(f"{folder.path} is of --program {saved.program!r}: give that flag, and no other program.")
    return replace(saved, **changes).resolved()


def restore(folder: RunFolder, settings: config.Config, *, download: bool) -> Fitted:
    """Build the program of a run and give it the parameters of its newest checkpoint.

    Args:
        folder: of the run.
        settings: as `settings_of` returns them.
        download: whether images that are absent are downloaded into their ``data_root``.

    Raises:
        ValueError: the images or the checkpoint are not there, or not good.
    """
    images = config.load_images(settings, download=download)
    found = History(folder.checkpoints, folder.config()).newest()
    if found is None:
        raise RunFolderError(f"{folder.path} has no checkpoint any more: another process has removed them.")
    program = programs.build(settings, images)
    some = images.train[:1] / 255
    load_parameters(program.model, program.guide, found[1].get("svi", {}), some)
    density = is_density(program.model, program.guide, some)
    lacking = why_no_density(program.model, program.guide, some)
    return Fitted(settings, images, program, config.look(settings, density), density, lacking)
