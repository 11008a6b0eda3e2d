"""Types of the fixtures `refused` and `promised`."""

from __future__ import annotations

from collections.abc import Callable

Refused = Callable[..., None]
Promised = Callable[[str], None]
