"""The README's library example runs as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_library_example(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    result = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    elbo, log_likelihood, share = map(float, lines[-1].split())
    assert len(lines) == 31
    assert float(lines[0].split()[1]) < elbo < log_likelihood < -20  # trained, and no more than the bound
    assert 0 <= share <= 1
