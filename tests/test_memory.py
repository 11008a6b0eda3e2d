"""Memory available to the process, under the limits of containers and jobs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyro_vae import memory

MACHINE, PAGE = 1000, 10
NAMES = {
    "v2": ("memory.max", "memory.current", "inactive_file"),
    "v1": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Return a function that creates control groups {path: (limit, usage, reclaimable)} for a process in `own`."""
    pages = {"SC_PHYS_PAGES": MACHINE, "SC_AVPHYS_PAGES": 600, "SC_PAGE_SIZE": PAGE}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)

    def make(version: str, own: str, groups: dict[str, tuple[str, int, int]]) -> None:
        root = tmp_path / "fs"
        line = f"0::{own}" if version == "v2" else f"4:cpu,memory:{own}"
        (tmp_path / "cgroup").write_text(f"8:pids:/elsewhere\n{line}\n")
        for path, values in groups.items():
            folder = (root / "memory" if version == "v1" else root) / path
            folder.mkdir(parents=True, exist_ok=True)
            limit, usage, inactive = NAMES[version]
            (folder / limit).write_text(f"{values[0]}\n")
            (folder / usage).write_text(f"{values[1]}\n")
            (folder / "memory.stat").write_text(f"cache 7\n{inactive} {values[2]}\n")
        monkeypatch.setattr(memory, "_PROCESS", tmp_path / "cgroup")
        monkeypatch.setattr(memory, "_CONTROL_GROUPS", root)

    return make


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize(
    ("own", "groups", "total", "free"),
    [
        ("/", {}, 10_000, 6_000),  # no group has files: the limit of the machine
        ("/job", {"job": ("max", 900, 0)}, 10_000, 6_000),
        ("/job", {"job": ("2000", 900, 100)}, 2_000, 1_200),  # cached file pages count as free
        ("/job/step", {"job": ("2000", 1900, 0), "job/step": ("5000", 10, 0)}, 2_000, 100),  # a limit in a parent group
        ("/seen/from/outside", {"": ("3000", 1000, 0)}, 3_000, 2_000),  # inside a container
        ("/job", {"job": ("9223372036854771712", 5, 0)}, 10_000, 6_000),  # v1 without a limit
        ("/job", {"job": ("500", 700, 0)}, 500, 0),
    ],
)
def test_lowest_limit_applies(
    version: str, own: str, groups: dict[str, tuple[str, int, int]], total: int, free: int, group: object
) -> None:
    group(version, own, groups)  # type: ignore[operator]
    assert (memory.total(), memory.free()) == (total, free)


def test_system_without_information_has_no_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_PROCESS", tmp_path / "absent")
    monkeypatch.setattr(os, "sysconf_names", {})
    assert memory.total() is None
    assert memory.free() is None
