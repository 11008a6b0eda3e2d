r"""Memory limits of this process, on the machine and in its container, and images split to fit into memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

_PROCESS, _CONTROL_GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
# By version of control groups: the files of the limit and of the usage, and the key in `memory.stat` of the page cache,
# which counts as usage, but is reclaimed on demand.
_FILES = {
    2: ("memory.max", "memory.current", "inactive_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}

_PART = 2**22  # values per part


def split_images(images: Tensor) -> Sequence[Tensor]:
    """Split images into views of about four million values each.

    Statistics over all images are computed part by part, since their intermediate results may not fit into memory.

    Args:
        images: Images, shape (N, ...).
    """
    return images.split(max(1, _PART // images[0].numel()))


def total() -> int | None:
    """Return the memory in bytes that this process may use in total, or None if the system does not report it."""
    return _minimum("SC_PHYS_PAGES", (limit for limit, _ in _limits()))


def free() -> int | None:
    """Return the memory in bytes that this process may still allocate, or None if the system does not report it.

    Linux kills a process that exceeds the limit of its control group, e.g. that of a container or of a cluster job.
    """
    return _minimum("SC_AVPHYS_PAGES", (max(0, limit - used) for limit, used in _limits()))


def _minimum(pages: str, limits: Iterator[int]) -> int | None:
    supported = pages in getattr(os, "sysconf_names", ())  # not on Windows
    machine = [os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")] if supported else []
    return min((*machine, *limits), default=None)


def _limits() -> Iterator[tuple[int, int]]:
    """Yield (limit, usage) in bytes for each control group of this process that has a limit."""
    for version, folder in _groups():
        limit, usage, inactive = _FILES[version]
        try:
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            used = int((folder / usage).read_text()) - int(statistics[inactive])
            yield int((folder / limit).read_text()), used
        except (OSError, ValueError, KeyError):  # no limit ("max"), or a group not visible inside a container
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
        innermost = root / path.lstrip("/")
        # The limits of all parents apply, too. Inside a container, the group of the container is mounted as the root.
        yield from ((version, group) for group in (innermost, *innermost.parents) if group.is_relative_to(root))
