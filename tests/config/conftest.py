"""Every test of this room leaves the folders of modules as they were."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no folder of a test stay among those of modules."""
    monkeypatch.setattr(sys, "path", list(sys.path))
