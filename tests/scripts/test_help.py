"""The help of every script: its examples, its flags and their defaults."""

from __future__ import annotations

import pytest
from helpers.calls import ROOT, inside


@pytest.mark.parametrize("name", ["fit", "evaluate", "compare", "sample", "benchmark"])
def test_help_shows_the_examples_line_by_line(name: str) -> None:
    lines = [line.rstrip() for line in inside(name, "--help").stdout.splitlines()]
    documented = (ROOT / "scripts" / f"{name}.py").read_text().split('"""')[1].splitlines()
    examples = [line for line in documented if line.startswith(f"    python scripts/{name}.py")]
    assert examples
    assert set(examples) <= set(lines)


@pytest.mark.parametrize("name", ["fit", "evaluate", "compare", "benchmark"])
def test_help_shows_every_flag_with_its_default(name: str) -> None:
    result = inside(name, "--help")
    assert result.returncode == 0
    flags = {
        "fit": ["--learning-rate", "0.003"],
        "evaluate": ["--num-samples", "None"],
        "compare": ["--seeds", "1"],
        "benchmark": ["--blocks", "15"],
    }
    for word in [*flags[name], "default:"]:
        assert word in result.stdout
    assert "(default: [" not in result.stdout
