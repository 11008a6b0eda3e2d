r"""Checks of your own programs: flags that a program does not read, and files that have changed since the fit."""

from __future__ import annotations

import hashlib
import logging
import reprlib
from collections.abc import Sequence
from pathlib import Path

from pyro_vae import data
from pyro_vae.config import Config, flag, program_files, programs
from pyro_vae.config.fields_read import WatchedConfig
from pyro_vae.config.saved import read_json
from pyro_vae.config.suited import adapt_to_data
from pyro_vae.errors import UserError
from pyro_vae.infer.streams import rng_state, set_rng_state
from pyro_vae.runs.run import example
from pyro_vae.runs.run_folder import RunFolder
from pyro_vae.trace import describe
from pyro_vae.trace.isolation import isolated_param_store

_LOG = logging.getLogger("pyro_vae")
_FILE = "program.json"


def check_flags_read(config: Config, images: data.Observed, names: Sequence[str]) -> None:
    """Raise if a flag is to have an effect on your own program, which does not read it when it is built and run once.

    For this the program is built once more. Random generators are restored.

    Args:
        config: Configuration of the run.
        images: Its images.
        names: Fields of the flags.

    Raises:
        UserError: If the program is your own and does not read one of the fields.
    """
    if config.program in programs.NAMES or not names:
        return
    watched, before = WatchedConfig.of(adapt_to_data(config, images.pixels)), rng_state()
    try:
        with isolated_param_store():
            program = program_files.build(watched, images.pixels, known=programs.NAMES)
            describe(program.model, program.guide, example(program, images))
    finally:
        set_rng_state(before)
    for name in names:
        if name not in watched.read:
            raise UserError(
                f"{flag(name)} has no effect: the program {config.program} does not read config.{name}. Leave it out."
            )


def save_digests(folder: RunFolder, program: str) -> None:
    """Write the SHA-256 of the files of your own program to program.json; for other programs, write nothing."""
    if program not in programs.NAMES:
        folder.write_json(_FILE, _digests(program))


def warn_if_changed(folder: RunFolder, program: str) -> None:
    """Log a warning that names the files of your own program that have changed since `save_digests`.

    Args:
        folder: Run folder, which may be untrusted.
        program: The program with its current path, after it has been built.
    """
    path = folder.path / _FILE
    if program in programs.NAMES or not path.exists():  # runs of earlier versions have no digests
        return
    saved, found = read_json(path, "a list of program files"), _digests(program)
    if not isinstance(saved, dict):
        raise UserError(f"{path} is not a list of program files.")
    changed = sorted(name for name in saved.keys() | found.keys() if saved.get(name) != found.get(name))
    if changed:
        names = ", ".join(reprlib.repr(name).strip("'") for name in changed[:3])
        _LOG.warning("%s was fitted with other contents of %s.", folder.path, names)


def _digests(program: str) -> dict[str, str]:
    """Return the SHA-256 of the file of a program, and of the modules that it imports from its folder, by name."""
    path = Path(program.rpartition(":")[0]).resolve()
    files = {file.relative_to(path.parent).as_posix(): file for file in program_files.imported_from(path.parent)}
    files["the program file"] = path  # which may have been renamed since
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}
