"""Checks outside the test suite: the stages of .ci/run, the workflow, the hooks and the package metadata."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import pyro_vae as pv

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEEDED = [Requirement(line) for line in PROJECT["dependencies"]]
STAGES = set(re.findall(r"^stage_(\w+)\(\)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE))
# Stands for python3: creates a virtual environment whose commands only log their arguments.
PYTHON3 = """#!/bin/sh
if [ "$1" != -m ]; then exec {python} "$@"; fi
mkdir -p "$3/bin"
for command in pip python ruff mypy; do
    printf '#!/bin/sh\\necho {mark} %s "$@"\\ncat "${{PIP_CONSTRAINT:-/dev/null}}"\\n' $command > "$3/bin/$command"
    chmod +x "$3/bin/$command"
done
"""

pytestmark = pytest.mark.host


def parsed(name: str) -> Any:
    return pytest.importorskip("yaml").safe_load((ROOT / name).read_text())


def run_stage(stage: str, folder: Path) -> subprocess.CompletedProcess[str]:
    stub = folder / "python3"
    stub.write_text(PYTHON3.format(python=sys.executable, mark="called:"))
    stub.chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    return subprocess.run([ROOT / ".ci" / "run", stage], capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize(
    ("stage", "commands"),
    [
        ("tests", ["python -m pytest"]),
        ("lowest", ["python -m pytest"]),
        ("slow", ["python -m pytest -m slow"]),
        ("lint", ["ruff check .", "ruff format --check .", "mypy"]),
    ],
)
def test_stage_installs_and_runs_its_commands(stage: str, commands: list[str], tmp_path: Path) -> None:
    """Only the stage of the lowest versions installs with constraints."""
    result = run_stage(stage, tmp_path)
    assert result.returncode == 0, result.stderr
    called = re.findall(r"^called: (.*)$", result.stdout, re.MULTILINE)
    assert called == ["pip install -e .[test]", *commands]
    constraints = {Requirement(line) for line in re.findall(r"^[\w-]+==.*$", result.stdout, re.MULTILINE)}
    lowest = {Requirement(f"{each.name}=={s.version}") for each in NEEDED for s in each.specifier}
    assert constraints == (lowest if stage == "lowest" else set())


def test_unknown_stage_is_rejected_and_known_ones_listed(tmp_path: Path) -> None:
    result = run_stage("nonsense", tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert set(re.findall(r"\w+", result.stderr.partition("[")[2])) == STAGES


def test_workflow_runs_existing_stages() -> None:
    workflow = parsed(".github/workflows/ci.yml")
    stages = {}
    for name, job in workflow["jobs"].items():
        (command,) = [step["run"] for step in job["steps"] if "run" in step]
        stages[name] = command.removeprefix(".ci/run ")
        assert any(step.get("uses", "").startswith("actions/checkout@") for step in job["steps"])
    assert stages == {name: name for name in ("lint", "tests", "lowest", "slow")}
    assert set(stages.values()) <= STAGES
    assert workflow["jobs"]["tests"]["strategy"]["matrix"]["python"] == ["3.11", "3.13"]
    assert [name for name, job in workflow["jobs"].items() if "schedule" in job.get("if", "")] == ["slow"]
    (schedule,) = workflow[True]["schedule"]  # YAML 1.1 parses `on` as true
    assert re.fullmatch(r"\d+ \d+ \* \* \d", schedule["cron"])  # weekly


def test_hooks_are_local_and_match_the_stages() -> None:
    (local,) = parsed(".pre-commit-config.yaml")["repos"]
    assert local["repo"] == "local"
    assert {hook["language"] for hook in local["hooks"]} == {"system"}
    script = (ROOT / ".ci" / "run").read_text()
    *tools, readme = [hook["entry"] for hook in local["hooks"]]
    assert tools == ["ruff check", "ruff format", "mypy"]
    assert all(f".venv/bin/{tool}" in script for tool in tools)
    assert (ROOT / readme.removeprefix("python -m pytest ")).is_file()


def test_citation_has_the_current_version() -> None:
    citation = parsed(".github/CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert str(citation["version"]) == pv.__version__ == PROJECT["version"]
    for ours, theirs in {
        "title": "name",
        "license": "license",
        "abstract": "description",
        "authors": "authors",
    }.items():
        assert citation[ours] == PROJECT[theirs]


def test_imports_are_declared_and_installed_in_supported_versions() -> None:
    declared = {canonicalize_name(each.name) for each in NEEDED}
    optional = {canonicalize_name(Requirement(line).name) for line in PROJECT["optional-dependencies"]["data"]}
    sources = [path for folder in ("pyro_vae", "scripts") for path in (ROOT / folder).rglob("*.py")]
    imported = set()
    for node in (node for path in sources for node in ast.walk(ast.parse(path.read_text()))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).partition(".")[0])
    ours = {"pyro_vae", *(path.stem for path in (ROOT / "scripts").glob("*.py"))}
    foreign = imported - set(sys.stdlib_module_names) - ours
    assert len(foreign) > 10
    distributions = packages_distributions()
    of_others = {"arviz_stats"}  # ArviZ 1.x
    undeclared = {
        name
        for name in foreign - of_others
        if not {canonicalize_name(each) for each in distributions.get(name, [name])} & (declared | optional)
    }
    assert undeclared == set()
    assert [str(each) for each in NEEDED if version(each.name) not in each.specifier] == []
