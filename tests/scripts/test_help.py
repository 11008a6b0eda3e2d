"""The help of every script: examples, groups of flags, defaults; and earlier names of flags."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
from helpers.calls import ROOT, inside
from helpers.documents import flags_of

from pyro_vae.instruments import INSTRUMENTS

SCRIPTS = ("fit", "evaluate", "compare", "sample", "benchmark")
GROUPS = {
    "fit": ["data", "model", "objective", "optimization", "evaluation", "runtime", "output"],
    "evaluate": [
        "evaluation",
        "data",
        "model",
        "runtime",
        "output",
        *(name for name in INSTRUMENTS if name != "classes"),
    ],
    "compare": ["comparison", "data", "model", "objective", "optimization", "evaluation", "runtime", "output"],
    "sample": ["data", "model", "runtime", "output"],
    "benchmark": ["measurement", "setting", "output"],
}


@pytest.fixture(autouse=True)
def one_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def module_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    yield importlib.import_module
    for name in (*SCRIPTS, "baselines", "contenders", "many_fits", "measurements", "scaling", "scoring", "timing"):
        sys.modules.pop(name, None)


@cache
def help_of(name: str) -> str:
    result = inside(name, "--help")
    assert result.returncode == 0
    return result.stdout


def groups_of(text: str) -> dict[str, list[str]]:
    """Return the lines of each group by its title, which is less indented."""
    groups: dict[str, list[str]] = {}
    for line in map(str.rstrip, text.splitlines()):
        if re.fullmatch(r" [a-z]+( options| arguments)?", line):
            groups[line.strip()] = []
        elif groups and line.startswith("  "):
            groups[list(groups)[-1]].append(line[2:])
    return groups


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_shows_the_examples_line_by_line(name: str) -> None:
    lines = [line.rstrip() for line in help_of(name).splitlines()]
    documented = (ROOT / "scripts" / f"{name}.py").read_text().split('"""')[1].splitlines()
    examples = [line for line in documented if line.startswith(f"    python scripts/{name}.py")]
    assert examples
    assert set(examples) <= set(lines)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_flag_is_in_a_named_group(name: str, module_of: Callable[[str], Any]) -> None:
    groups = groups_of(help_of(name))
    assert [line.split()[0] for line in groups.pop("options") if line.startswith("-")] == ["-h,"]
    groups.pop("positional arguments", None)
    assert list(groups) == [f"{group} options" for group in GROUPS[name]]
    shown = [line.split()[0] for lines in groups.values() for line in lines if re.match("--[a-z]", line)]
    known = set(flags_of(module_of(name).Arguments)) - {"--run", "--runs"}
    assert sorted(shown) == sorted(known)


@pytest.mark.parametrize("name", SCRIPTS)
def test_defaults_are_shown_as_typed(name: str) -> None:
    text = " ".join(help_of(name).split())
    defaults = re.findall(r"\(default: ([^)]*)\)", text)
    assert "auto" in defaults
    assert [default for default in defaults if set("[]'\",{}()") & set(default)] == []
    expected = {"fit": ["digits", "0.003", "0.8 0.1 0.1"], "compare": ["digits", "standard"], "benchmark": ["1 50"]}
    assert set(expected.get(name, [])) <= set(defaults)
    assert "None" not in defaults or "If None, " in text


def test_every_instrument_is_listed_with_its_flag_and_output() -> None:
    text = help_of("evaluate")
    listed = dict(re.findall(r"^    (\w+)  +(\S.*)$", text, re.MULTILINE))
    assert list(listed) == list(INSTRUMENTS)
    shown = {line.split()[0] for lines in groups_of(text).values() for line in lines if re.match("--[a-z]", line)}
    for name, line in listed.items():
        if name == "classes":
            assert line.endswith("It needs no flag.")
        else:
            flag, files = re.fullmatch(r".*\. (--[\w-]+) writes (.*)\.", line).groups()  # type: ignore[union-attr]
            assert flag in shown
            assert re.fullmatch(r"(\w+\.nc)?( and )?(figures/\w+\.png)?", files)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["--temperatures", "7"], ["--ais-temperatures", "7"]),
        (["--temperatures=7"], ["--ais-temperatures=7"]),
        (["--anneal-from", "prior"], ["--ais-start", "prior"]),
        (["--anneal_from", "prior"], ["--ais_start", "prior"]),
        (["--path", "linear"], ["--temperature-schedule", "linear"]),
        (["--local-steps", "7"], ["--local-vi-steps", "7"]),
        (["--calibrate", "7"], ["--sbc-images", "7"]),
    ],
)
def test_earlier_name_of_a_flag_is_an_alias(old: list[str], new: list[str], module_of: Callable[[str], Any]) -> None:
    parse = module_of("evaluate").parse
    assert parse(["RUN", *old]) == parse(["RUN", *new]) != parse(["RUN"])
    assert old[0].partition("=")[0] not in help_of("evaluate").split()
