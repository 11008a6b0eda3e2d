"""The documentation as text: its code blocks, commands, links and flags."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from pyro_vae import config

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    "README.md",
    *(f".github/{name}.md" for name in ("RESULTS", "BENCHMARKS", "CONTRIBUTING")),
    *(f"{folder}/README.md" for folder in ("scripts", "pyro_vae", "pyro_vae/data", "tests")),
]
_FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def text_of(name: str) -> str:
    return (ROOT / name).read_text()


def python_of(name: str) -> list[str]:
    """Return the Python blocks of a document."""
    return re.findall(r"^```python\n(.*?)^```$", text_of(name), re.DOTALL | re.MULTILINE)


def spans_of(name: str) -> list[str]:
    """Return the text between backticks in the prose of a document."""
    return re.findall(r"`([^`\n]+)`", _FENCED.sub("", text_of(name)))


def commands_of(name: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the script and the arguments of each command line; a backslash continues a command on the next line."""
    for script, words in re.findall(r"python scripts/(\w+)\.py([^`\n]*)", re.sub(r"\\\n", " ", text_of(name))):
        yield script, shlex.split(words)


def links_of(name: str) -> Iterator[tuple[Path, str]]:
    """Yield file and heading (may be empty) of each link or image that points into the repository."""
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", _FENCED.sub("", text_of(name))):
        if not target.startswith("http"):
            path, _, heading = target.partition("#")
            yield (ROOT / name).parent / path if path else ROOT / name, heading


def headings_of(path: Path) -> set[str]:
    """Return the anchors of the headings of a document."""
    titles = re.findall(r"^#+ (.*)$", _FENCED.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def flags_of(arguments: Any) -> Iterator[str]:
    """Yield the flags of a dataclass of arguments, including nested dataclasses."""
    kinds = get_type_hints(arguments)
    for field in fields(arguments):
        if is_dataclass(kinds[field.name]):
            yield from flags_of(kinds[field.name])
        else:
            yield config.flag(field.name)
