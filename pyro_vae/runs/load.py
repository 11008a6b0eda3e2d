r"""Loading of finished runs: the program with its fitted weights, and its images.

A run folder is untrusted: code that it names is never executed, and nothing is downloaded unless the caller permits it.
"""

from __future__ import annotations

import difflib
import logging
import reprlib
from collections.abc import Mapping, Sequence
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
from pyro_vae.runs.own_program import warn_if_changed
from pyro_vae.runs.own_store import IsolatedProgram
from pyro_vae.runs.run import Run, example, load_images, make_run
from pyro_vae.runs.run_folder import RunFolder

_LOG = logging.getLogger("pyro_vae")
_MOST_NAMED = 5  # runs in an error message


def load_config(folder: RunFolder, changes: Mapping[str, Any]) -> Config:
    """Return the configuration of a run that has a checkpoint.

    Args:
        folder: Run folder.
        changes: Fields of the configuration to replace. For a run of a custom program, ``program`` must be given as
            path/to/file.py:factory with the current path of the file.

    Raises:
        UserError: If the folder is not a run folder or has no checkpoint, if its configuration is invalid, or if
            `changes` does not give the program of the run as described.
    """
    saved = _saved_config(folder)
    is_custom = saved.program not in programs.NAMES
    program = changes.get("program", None if is_custom else saved.program)
    if program is None or (program != saved.program and not (is_custom and ":" in program)):
        hint = "with the current path of the file" if is_custom else "or leave it out"
        raise UserError(f"{folder.path} was fitted with --program {saved.program!r}; repeat that flag {hint}.")
    names = [spec.rpartition(":")[2] for spec in (saved.program, program)]
    if names[0] != names[1]:
        raise UserError(
            f"{folder.path} was fitted with the factory {names[0]!r}, but --program {program} names {names[1]!r}."
        )
    changed = replace(saved, **changes).resolve()
    if "data_root" in changes:
        changed.check_data_root()
    return changed


def choose_program(folders: Sequence[RunFolder], given: Sequence[str]) -> list[dict[str, str]]:
    """Assign your own programs to the runs that were fitted with their factories.

    Args:
        folders: Run folders.
        given: Programs, each path/to/file.py:factory.

    Returns:
        For each run, the `changes` for `load_config`: ``{"program": ...}``, or none for a program of the package.

    Raises:
        UserError: If several programs, or none, may be that of a run, or one is that of no run.
    """
    if len(folders) == 1 and len(given) == 1:
        return [{"program": given[0]}]  # `load_config` says what is wrong with it
    chosen: list[dict[str, str]] = []
    for folder in folders:
        saved = _saved_config(folder).program
        factory = saved.rpartition(":")[2]
        fitting = [each for each in given if each == saved]
        if not fitting and saved not in programs.NAMES:
            fitting = [each for each in given if each.rpartition(":")[2] == factory]
        if len(fitting) > 1:
            both = " and ".join(fitting[:2])
            raise UserError(f"{folder.path} may have been fitted with {both}; evaluate it in a separate call.")
        chosen.append({"program": fitting[0]} if fitting else {})
    for each in given:
        if {"program": each} not in chosen:
            raise UserError(f"--program {each}: no run was fitted with its factory; leave it out.")
    return chosen


def _saved_config(folder: RunFolder) -> Config:
    if not folder.is_run:
        raise RunFolderError(f"{folder.path} is not a run folder: it has no config.json.{_runs_beside(folder.path)}")
    folder.reject_symlinks()
    saved = read_config(folder.config_path)
    if not Checkpoints(folder.checkpoints, saved.to_json()).paths():
        raise RunFolderError(f"{folder.path} has no checkpoint yet; fit it first.")
    return saved


def _runs_beside(path: Path) -> str:
    """Return the names of runs in the same folder for an error message, those most similar to the name first."""
    try:
        runs = [each.name for each in path.parent.iterdir() if RunFolder(each).is_run]
    except OSError:
        return ""
    similar = difflib.get_close_matches(path.name, runs, _MOST_NAMED, cutoff=0.0)
    names = ", ".join(similar) + (", ..." if len(runs) > len(similar) else "")
    return f" The runs in {path.parent} are {names}." if runs else ""


def rebuild(folder: RunFolder, config: Config, images: data.Observed) -> Any:
    """Build the program of a run as its fit did, with the saved random seed even if that of `config` differs.

    Random values that a program draws when it is built and does not store as parameters are then the same. The global
    random state is unchanged.

    Args:
        folder: Run folder.
        config: Configuration returned by `load_config`.
        images: Images of the run.

    Returns:
        The result of `programs.build`, with the initial weights of the fit.
    """
    seed, before = read_config(folder.config_path).seed, rng_state()
    set_rng_seed(seed)
    try:
        return programs.build(replace(config, seed=seed), images.pixels)
    finally:
        set_rng_state(before)


def restore(folder: RunFolder, config: Config, *, download: bool) -> Run:
    """Build the program of a run and load its newest checkpoint into a separate param store.

    If the fit averages its parameters, the averages are loaded.

    Args:
        folder: Run folder.
        config: Configuration returned by `load_config`.
        download: Whether to download missing images to ``config.data_root``.

    Raises:
        UserError: If the images are missing or invalid, or all checkpoints were removed.
        CheckpointError: If there are checkpoints and none is valid.
    """
    images = load_images(config, download=download)
    newest = Checkpoints(folder.checkpoints, folder.config()).newest()
    if newest is None:
        raise RunFolderError(f"{folder.path} has no checkpoint left; another process removed it.")
    if not folder.finished:
        _LOG.warning(
            "%s is unfinished: epoch %s of %s.", folder.path, reprlib.repr(newest[1].get("epoch")), config.epochs
        )
    with pyro.get_param_store().scope() as store:
        program = rebuild(folder, config, images)
        warn_if_changed(folder, config.program)
        averaged = newest[1].get("average")
        weights = newest[1].get("svi", {}) if averaged is None else averaged
        load_program_state(program.model, program.guide, weights, example(program, images))
        run = make_run(config, images, program)
    return replace(run, program=IsolatedProgram(program, store))


def load_run(path: Path | str, *, download: bool = False, **changes: Any) -> Run:
    """Load a finished run: its program with the fitted weights, its images and its configuration.

    Several runs can be open in one process, because each has a separate param store.

    Args:
        path: Run folder.
        download: Whether to download missing images to ``data_root``.
        **changes: Fields of the configuration to replace, such as ``device`` or ``data_root``. For a run of a custom
            program, ``program`` must be path/to/file.py:factory with the current path; the file is executed.

    Raises:
        UserError: If `path` is not a run folder with a checkpoint, or its configuration or images are invalid.
        CheckpointError: If there are checkpoints and none is valid.
    """
    folder = RunFolder(Path(path))
    return restore(folder, load_config(folder, changes), download=download)
