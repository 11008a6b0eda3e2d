r"""A run that has been fitted, as it stands in its folder: its program with its weights, and its images.

No code that a run folder names is run, and nothing is downloaded to a place that it names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
from pyro.util import set_rng_seed
from torch import Tensor

from pyro_vae import config, data
from pyro_vae.config import programs
from pyro_vae.config.saved import read_config
from pyro_vae.errors import UserError
from pyro_vae.infer import load_parameters
from pyro_vae.infer.streams import set_streams, streams
from pyro_vae.runs.checkpoints import History
from pyro_vae.runs.folder import RunFolderError
from pyro_vae.runs.own_store import InOwnStore
from pyro_vae.runs.run_folder import RunFolder
from pyro_vae.trace import Batch, Data, describe


class Labelled(NamedTuple):
    """Images (N, ...) as the program observes them, beside its other arguments if it has any; and classes (N,)."""

    x: Data
    classes: np.ndarray

    @property
    def pixels(self) -> Tensor:
        """The images alone."""
        return Batch.of(self.x).x


@dataclass(frozen=True)
class Fitted:
    """A program with its fitted parameters, in a param store of its own, and its images."""

    settings: config.Config
    images: data.Images
    program: InOwnStore
    look: Callable[..., Tensor]
    density: bool
    lacking: str | None
    """Why the program has no log weights, or None."""

    def observed(self, split: str) -> Data:
        """Return the images of a split (N, *pixels) as the program observes them, the same every time.

        A program that takes labels has them beside the images, in a `Batch`.
        """
        return observed(self.program, self.images, split, self.look)

    def labelled(self, split: str) -> Labelled:
        """Return the images of a split as the program observes them, with the first of their labels.

        Raises:
            ValueError: they have none.
        """
        labels = self.images.labels
        if labels is None:
            raise UserError(f"{self.images.name} has no labels: choose other --data.")
        return Labelled(self.observed(split), labels.of(labels.names[0], split).cpu().numpy())


def observed(program: Any, images: data.Images, split: str, look: Callable[..., Tensor]) -> Data:
    """Return the images of a split as a program observes them, with their labels where it takes them.

    Args:
        program: an object with ``model`` and ``guide``.
        images: uint8 pixels.
        split: train, valid or test.
        look: what it observes of pixels, from `config.look`.
    """
    x = data.observe_once(getattr(images, split), look)
    labels = programs.labels_of(program, images, split)
    return x if labels is None else Batch(x, labels)


def few(program: Any, images: data.Images) -> Data:
    """Return an image as a program may be called with it before it is known how it observes pixels."""
    x = images.train[:1] / 255
    labels = programs.labels_of(program, images, "train")
    return x if labels is None else Batch(x, labels[:1])


def settings_of(folder: RunFolder, changes: Mapping[str, Any]) -> config.Config:
    """Return the configuration of a run that has a checkpoint, with changes.

    Raises:
        ValueError: it is no run folder, it has no checkpoint, its configuration cannot be read, or it is of somebody's
            own program, which `changes` does not name where it lies now.
    """
    if not folder.is_run:
        raise RunFolderError(f"{folder.path} is no run folder: it has no config.json.")
    folder.refuse_links()
    saved = read_config(folder.config_path)
    if not History(folder.checkpoints, saved.to_json()).paths():
        raise RunFolderError(f"{folder.path} has no checkpoint yet; fit it first.")
    own = saved.program not in programs.NAMES
    program = changes.get("program", None if own else saved.program)
    if program is None or (program != saved.program and not (own and ":" in program)):
        place = ", with the path that the file has here" if own else ", and no other program"
        raise UserError(f"{folder.path} is of --program {saved.program!r}: give that flag{place}.")
    names = [each.rpartition(":")[2] for each in (saved.program, program)]
    if names[0] != names[1]:
        raise UserError(f"{folder.path} is of the factory {names[0]!r}, and --program {program} names {names[1]!r}.")
    return replace(saved, **changes).resolved()


def build(folder: RunFolder, settings: config.Config, images: data.Images) -> Any:
    """Build the program of a run as its fit did: under the seed of the run, whichever that of `settings` is.

    What a program draws and keeps in no parameter is the same then. The global streams stay where they are.

    Args:
        folder: of the run.
        settings: as `settings_of` returns them.
        images: of the run.

    Returns:
        As `programs.build`, with the weights that the fit began with.
    """
    seed, before = read_config(folder.config_path).seed, streams()
    set_rng_seed(seed)
    try:
        return programs.build(replace(settings, seed=seed), images)
    finally:
        set_streams(before)


def restore(folder: RunFolder, settings: config.Config, *, download: bool) -> Fitted:
    """Build the program of a run and give it the parameters of its newest checkpoint, in a param store of its own.

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
    with pyro.get_param_store().scope() as store:
        program = build(folder, settings, images)
        some = few(program, images)
        load_parameters(program.model, program.guide, found[1].get("svi", {}), some)
        described = describe(program.model, program.guide, some)
    density = described.observes == "density"
    look = config.look(settings, density)
    return Fitted(settings, images, InOwnStore(program, store), look, density, described.lacks)


def load_run(path: Path | str, *, download: bool = False, **changes: Any) -> Fitted:
    """Open a run that has been fitted: its program with its weights, its images and its configuration.

    Any number of runs can be open in one process: each has a param store of its own.

    Args:
        path: folder of the run.
        download: whether images that are absent are downloaded into their ``data_root``.
        **changes: fields of the configuration to change, such as ``device`` or ``data_root``; of a run of your own
            program, ``program`` says where its file lies now, and its code is run.

    Raises:
        UserError: it is no run folder, or its configuration, images or checkpoint are not there or not good.
    """
    folder = RunFolder(Path(path))
    return restore(folder, settings_of(folder, changes), download=download)
