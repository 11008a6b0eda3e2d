r"""Continuation of a run: its configuration, with those flags replaced that may change between two calls."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, fields, replace

from pyro_vae.config import Config, programs
from pyro_vae.config.choices import AUTO, LEFT_TO_DATA
from pyro_vae.config.saved import read_config
from pyro_vae.runs.files import identity
from pyro_vae.runs.folder import RunFolderError
from pyro_vae.runs.run_folder import RunFolder


def continue_config(folder: RunFolder, flags: Config, given: Collection[str]) -> Config:
    """Return the configuration with which a run continues.

    Args:
        folder: Run folder with a configuration. It is untrusted: the file of a custom program is never taken from it.
        flags: Configuration that the flags of this call specify.
        given: Fields of `flags` that the call sets. All others are those of the run.

    Raises:
        UserError: If the saved configuration is invalid, or a flag has a value that cannot change: the number of epochs
            can be raised, and the device, the folder of the data and the path of a file can be different ones.
    """
    folder.reject_symlinks()
    saved = read_config(folder.config_path)
    new = {name: value for name, value in asdict(flags.resolve()).items() if name in given}
    open_fields = {name for name in LEFT_TO_DATA if new.get(name) == AUTO}  # the data set has determined them
    continued = replace(saved, **{name: value for name, value in new.items() if name not in open_fields}).resolve()
    before, after = identity(saved.to_json()), identity(continued.to_json())
    if changed := sorted(name for name in before if before[name] != after[name]):
        raise RunFolderError(
            f"{folder.path} was started with different values of {', '.join(changed)}; leave out these flags, or "
            "choose another --out."
        )
    if saved.program not in programs.NAMES and "program" not in given:
        raise RunFolderError(
            f"{folder.path} was started with --program {saved.program!r}; repeat that flag with the current path of "
            "the file, which is executed."
        )
    _check_epochs(folder, saved, continued)
    return continued


def is_finished(folder: RunFolder, config: Config) -> bool:
    """Return whether a run has been finished with the number of epochs of its configuration, which may be raised.

    Raises:
        UserError: As `continue_config`, if there is a finished run that `config` does not continue.
    """
    if not folder.finished:
        return False
    continued = continue_config(folder, config, [field.name for field in fields(Config)])
    return continued.epochs == read_config(folder.config_path).epochs


def _check_epochs(folder: RunFolder, saved: Config, continued: Config) -> None:
    assert saved.epochs is not None
    assert continued.epochs is not None
    if continued.epochs < saved.epochs:
        raise RunFolderError(
            f"--epochs is {continued.epochs}, and {folder.path} was started with {saved.epochs}; --resume can only "
            "raise it."
        )
    if continued.epochs > saved.epochs and (saved.patience or saved.ema):
        raise RunFolderError(
            f"--epochs cannot be raised for {folder.path}: with --patience or --ema, the last checkpoint may hold the "
            "best or averaged weights instead of the last ones. Fit it again with --overwrite."
        )
