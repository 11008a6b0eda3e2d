r"""How much memory this process may take, on the machine or in its container, and images read in parts that fit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

_PROCESS, _CONTROL_GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
# The files of a control group, by version: its limit, what it uses, and the part of that which can be reclaimed.
_FILES = {
    2: ("memory.max", "memory.current", "inactive_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}

_PART = 2**22  # values


def split_images(images: Tensor) -> Sequence[Tensor]:
    """Return images (N, ...) in parts of about four million values, views: all of them may not fit into memory."""
    return images.split(max(1, _PART // images[0].numel()))


def total() -> int | None:
    """Return the bytes of memory that this process may take in all; None where the system does not tell."""
    return _lowest("SC_PHYS_PAGES", (limit for limit, _ in _limits()))


def free() -> int | None:
    """Return the bytes of memory that this process may still take; None where the system does not tell.

    Linux kills a process that takes more than its control group allows, such as that of a container or of a job.
    """
    return _lowest("SC_AVPHYS_PAGES", (max(0, limit - used) for limit, used in _limits()))


def _lowest(pages: str, limits: Iterator[int]) -> int | None:
    known = pages in getattr(os, "sysconf_names", ())  # not on Windows
    machine = [os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")] if known else []
    return min((*machine, *limits), default=None)


def _limits() -> Iterator[tuple[int, int]]:
    """Yield the limit and the use, in bytes, of each control group that this process belongs to."""
    for version, folder in _groups():
        limit, usage, inactive = _FILES[version]
        try:
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            used = int((folder / usage).read_text()) - int(statistics[inactive])
            yield int((folder / limit).read_text()), used
        except (OSError, ValueError, KeyError):  # no limit ("max"), or no such group as seen from inside a container
            continue


def _groups() -> Iterator[tuple[int, Path]]:
    try:
        lines = _PROCESS.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        version, root = (1, _CONTROL_GROUPS / "memory") if controllers else (2, _CONTROL_GROUPS)
        own = root / path.lstrip("/")
        # A limit above this group holds as well. Inside a container its own group is the root.
        yield from ((version, group) for group in (own, *own.parents) if group.is_relative_to(root))
