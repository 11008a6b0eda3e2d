"""Fixtures for the tests of `config/`: each test restores `sys.path`."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore `sys.path` and the import caches after the test."""
    monkeypatch.setattr(sys, "path", list(sys.path))
