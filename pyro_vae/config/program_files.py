r"""Programs of a user's own, in a Python file: path/to/file.py:factory."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from pyro_vae.config import Config
from pyro_vae.data import Collection
from pyro_vae.errors import UserError

# How the modules of program files are called, with a digest of the path behind it.
_MODULE = "pyro_vae_program_"
# The folders of such files in which Python looks for modules because of them alone.
_FOLDERS: set[str] = set()


def build(config: Config, images: Collection, known: Iterable[str]) -> Any:
    """Run the file of a program and call the factory in it.

    Args:
        config: names the file and its factory, which is called with it.
        images: what the factory is called with beside it.
        known: the programs that are there without a file, for the message where no file is named.

    Returns:
        An object with ``model`` and ``guide``.

    Raises:
        UserError: the file, the factory, or what that should return is not there.
        RuntimeError: from a ValueError or an OSError of the code in that file.
    """
    spec, name = _find(config.program, known)
    with _traceback_kept(config.program):
        factory = getattr(_run_file(spec), name, None)
    if not callable(factory):
        raise UserError(f"--program {config.program}: {spec.origin} defines no function {name!r}.")
    with _traceback_kept(config.program):
        program = factory(config, images)
    for part in ("model", "guide"):
        if not callable(getattr(program, part, None)):
            raise UserError(f"--program {config.program}: what the factory returns has no {part}(x).")
    return program


def _find(program: str, known: Iterable[str]) -> tuple[ModuleSpec, str]:
    """Return the module of a program in a file, which has not been run, and the name of its factory."""
    path, colon, name = program.rpartition(":")
    if not colon:
        names = ", ".join(known)
        raise UserError(f"Unknown program {program!r}; choose one of {names}, or path/to/file.py:factory.")
    readable = os.path.isfile(path) and os.access(path, os.R_OK)
    digest = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:16]
    spec = importlib.util.spec_from_file_location(_MODULE + digest, path) if readable else None
    if spec is None:
        raise UserError(f"--program {program}: no Python file {path!r} to read; write path/to/file.py:factory.")
    return spec, name


@contextmanager
def _traceback_kept(program: str) -> Iterator[None]:
    """Let an error of somebody's own code end a script with its traceback, where one of ours would be one line."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise RuntimeError(f"--program {program} has failed in its own code.") from error


def _run_file(spec: ModuleSpec) -> ModuleType:
    """Run a file as a new process would: its folder comes first for modules, and those that lie there run anew.

    A module of an earlier program may be that of another folder, or hold what it has drawn under another seed.
    """
    assert spec.origin is not None
    assert spec.loader is not None
    folder = os.path.dirname(os.path.realpath(spec.origin))
    for stale in [name for name in list(sys.modules) if _is_beside_a_program(name)]:
        del sys.modules[stale]
    if folder not in map(os.path.realpath, sys.path):
        _FOLDERS.add(folder)
    sys.path[:] = [folder, *(entry for entry in sys.path if entry != folder)]
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(spec.name, None)
        raise
    return module


def _is_beside_a_program(name: str) -> bool:
    """Whether a module, or the package that it is of, lies where only the files of programs have Python look."""
    spec = getattr(sys.modules.get(name.partition(".")[0]), "__spec__", None)
    if spec is None or name.startswith(_MODULE):
        return False
    return any(
        os.path.dirname(location) in _FOLDERS for location in spec.submodule_search_locations or [spec.origin or ""]
    )
