r"""Where the results of opened runs are written, and the names under which they are shown together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pyro_vae.runs.folder import LOCK, Folder, RunFolderError
from pyro_vae.runs.run_folder import RunFolder


def names_of(paths: Sequence[Path]) -> list[str]:
    """Return the shortest suffixes of the paths, of equal depth, that are all different.

    Raises:
        RunFolderError: If two paths are the same folder.
    """
    pieces = [path.resolve().parts for path in paths]
    if len(set(pieces)) < len(pieces):
        raise RunFolderError("A run folder is given twice; give each one once.")
    depth = next(d for d in range(1, 1 + max(map(len, pieces))) if len({p[-d:] for p in pieces}) == len(pieces))
    return ["/".join(p[-depth:]) for p in pieces]


def place_results(default: Folder, out: Path | None, name: str = "") -> Folder:
    """Return the folder for results of a run: `default`, or a folder of the same layout at ``out / name``.

    Raises:
        RunFolderError: If that is a run folder, whose own scores would be replaced, or has other files, of which some
            would be deleted.
    """
    if out is None:
        return default
    if RunFolder(out / name).is_run:
        raise RunFolderError(f"{out / name} is a run folder, and its files would be replaced; choose another --out.")
    place = out / name
    # Every folder of results has the file of its lock.
    if place.is_dir() and any(place.iterdir()) and not (place / LOCK).exists():
        raise RunFolderError(f"{place} contains other files than results, which are kept; choose another --out.")
    return Folder(place, str(default.figures.relative_to(default.path)), default.title)
