"""Files of saved values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def saved(path: Path, values: Any) -> Path:
    path.write_text(json.dumps(values))
    return path
