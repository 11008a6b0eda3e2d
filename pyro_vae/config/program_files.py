r"""Your own programs, in a Python file: path/to/file.py:factory."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from pyro_vae.config import Config
from pyro_vae.data import Collection
from pyro_vae.errors import PROGRAM, UserError

# Folders that are in `sys.path` only because a program file is in them.
_FOLDERS: set[str] = set()


def build(config: Config, images: Collection, known: Iterable[str]) -> Any:
    """Execute the file of a program and call the factory that it defines.

    Args:
        config: Configuration that names the file and the factory. It is passed to the factory.
        images: Data set, also passed to the factory.
        known: Names of the built-in programs, for the error message if no file is named.

    Returns:
        An object with ``model`` and ``guide``.

    Raises:
        UserError: If the file or the factory is missing, or the factory does not return a model and a guide.
        RuntimeError: If the code of the file raises a ValueError or an OSError.
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
            raise UserError(f"--program {config.program}: the object returned by the factory has no {part}(x).")
    return program


def _find(program: str, known: Iterable[str]) -> tuple[ModuleSpec, str]:
    """Return the spec of the module of a program file, not yet executed, and the name of its factory."""
    path, colon, name = program.rpartition(":")
    if not colon:
        names = ", ".join(known)
        raise UserError(f"Unknown program {program!r}; choose one of {names}, or path/to/file.py:factory.")
    readable = os.path.isfile(path) and os.access(path, os.R_OK)
    digest = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:16]
    spec = importlib.util.spec_from_file_location(PROGRAM + digest, path) if readable else None
    if spec is None:
        raise UserError(f"--program {program}: no readable Python file {path!r}; write path/to/file.py:factory.")
    return spec, name


@contextmanager
def _traceback_kept(program: str) -> Iterator[None]:
    """Convert errors of the user's code that scripts would print on one line, to keep their traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise RuntimeError(f"--program {program} has failed in its own code.") from error


def _run_file(spec: ModuleSpec) -> ModuleType:
    """Execute a file as in a new process: its folder is first in the module search path, and its imports are fresh.

    Modules cached from an earlier program may come from another folder, or contain values sampled with another seed.
    """
    assert spec.origin is not None
    assert spec.loader is not None
    folder = os.path.dirname(os.path.realpath(spec.origin))
    for stale in _others(*_FOLDERS):
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


def imported_from(folder: Path) -> list[Path]:
    """Return the files of the modules that have been imported from the folder of a program, and of its packages."""
    origins = [getattr(getattr(sys.modules[name], "__spec__", None), "origin", None) for name in _others(str(folder))]
    return sorted(Path(os.path.realpath(origin)) for origin in origins if origin and os.path.isfile(origin))


def _others(*folders: str) -> list[str]:
    """Return the names of the modules, other than program files and this package, whose top level is in a folder."""
    return [name for name in list(sys.modules) if _is_from(name, folders)]


def _is_from(name: str, folders: Iterable[str]) -> bool:
    top = name.partition(".")[0]
    spec = getattr(sys.modules.get(top), "__spec__", None)
    if spec is None or name.startswith(PROGRAM) or top == __name__.partition(".")[0]:
        return False
    return any(
        os.path.dirname(location) in folders for location in spec.submodule_search_locations or [spec.origin or ""]
    )
