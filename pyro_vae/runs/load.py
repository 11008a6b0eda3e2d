r"""A run that has been fitted, as it stands in its folder: its program with its weights, and its images.

No code that a run folder names is run, and nothing is downloaded to a place that it names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
from pyro.util import set_rng_seed

from pyro_vae import data
from pyro_vae.config import Config, programs
from pyro_vae.config.saved import read_config
from pyro_vae.errors import UserError
from pyro_vae.infer import load_program_state
from pyro_vae.infer.streams import rng_state, set_rng_state
from pyro_vae.runs.checkpoints import Checkpoints
from pyro_vae.runs.folder import RunFolderError
from pyro_vae.runs.own_store import IsolatedProgram
from pyro_vae.runs.run import Run, example, load_images, make_run
from pyro_vae.runs.run_folder import RunFolder


def load_config(folder: RunFolder, changes: Mapping[str, Any]) -> Config:
    """Return the configuration of a run that has a checkpoint, with changes.

    Raises:
        ValueError: it is no run folder, it has no checkpoint, its configuration cannot be read, or it is of somebody's
            own program, which `changes` does not name where it lies now.
    """
    if not folder.is_run:
        raise RunFolderError(f"{folder.path} is no run folder: it has no config.json.")
    folder.reject_symlinks()
    saved = read_config(folder.config_path)
    if not Checkpoints(folder.checkpoints, saved.to_json()).paths():
        raise RunFolderError(f"{folder.path} has no checkpoint yet; fit it first.")
    is_own = saved.program not in programs.NAMES
    program = changes.get("program", None if is_own else saved.program)
    if program is None or (program != saved.program and not (is_own and ":" in program)):
        hint = ", with the path that the file has here" if is_own else ", and no other program"
        raise UserError(f"{folder.path} is of --program {saved.program!r}: give that flag{hint}.")
    names = [spec.rpartition(":")[2] for spec in (saved.program, program)]
    if names[0] != names[1]:
        raise UserError(f"{folder.path} is of the factory {names[0]!r}, and --program {program} names {names[1]!r}.")
    return replace(saved, **changes).resolve()


def rebuild(folder: RunFolder, config: Config, images: data.Observed) -> Any:
    """Build the program of a run as its fit did: under the seed of the run, whichever that of `config` is.

    What a program draws and keeps in no parameter is the same then. The global streams stay where they are.

    Args:
        folder: of the run.
        config: as `load_config` returns it.
        images: of the run.

    Returns:
        As `programs.build`, with the weights that the fit began with.
    """
    seed, before = read_config(folder.config_path).seed, rng_state()
    set_rng_seed(seed)
    try:
        return programs.build(replace(config, seed=seed), images.pixels)
    finally:
        set_rng_state(before)


def restore(folder: RunFolder, config: Config, *, download: bool) -> Run:
    """Build the program of a run and give it the parameters of its newest checkpoint, in a param store of its own.

    Where the fit averages its weights, they are the averages.

    Args:
        folder: of the run.
        config: as `load_config` returns it.
        download: whether images that are absent are downloaded into their ``data_root``.

    Raises:
        UserError: the images or the checkpoint are not there, or not good.
    """
    images = load_images(config, download=download)
    newest = Checkpoints(folder.checkpoints, folder.config()).newest()
    if newest is None:
        raise RunFolderError(f"{folder.path} has no checkpoint any more: another process has removed them.")
    with pyro.get_param_store().scope() as store:
        program = rebuild(folder, config, images)
        averaged = newest[1].get("average")
        weights = newest[1].get("svi", {}) if averaged is None else averaged
        load_program_state(program.model, program.guide, weights, example(program, images))
        run = make_run(config, images, program)
    return replace(run, program=IsolatedProgram(program, store))


def load_run(path: Path | str, *, download: bool = False, **changes: Any) -> Run:
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
    return restore(folder, load_config(folder, changes), download=download)
