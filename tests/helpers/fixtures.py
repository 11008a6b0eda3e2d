"""The types of fixtures."""

from __future__ import annotations

from collections.abc import Callable

Refused = Callable[..., None]
