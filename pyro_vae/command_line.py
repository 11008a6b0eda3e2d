r"""Parsing of the flags of all scripts."""

from __future__ import annotations

import difflib
import io
import re
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import partial
from importlib.metadata import version
from typing import Any

import tyro

from pyro_vae import torchrun
from pyro_vae.errors import UserError


def parse(arguments: Any, words: Sequence[str], description: str) -> Any:
    """Parse the words of a command line.

    Args:
        arguments: Dataclass of the flags, for `tyro.cli`.
        words: Words after the name of the script.
        description: Text above the flags in the output of --help.

    Raises:
        UserError: If the words do not fit the flags. The message is one line, without the frame that tyro draws.
        SystemExit: With status 0, after --help or --version.
    """
    if "--version" in words:
        if torchrun.prints():
            print(", ".join(f"{name} {version(name)}" for name in ("pyro_vae", "torch", "pyro-ppl")))
        raise SystemExit(0)
    run = partial(tyro.cli, arguments, description=f"{description}\n--version shows the versions that run.\n")
    errors = io.StringIO()
    try:
        with redirect_stderr(errors):
            return run(args=list(words))
    except SystemExit as end:
        if not end.code:
            raise
    raise UserError(f"{_first_paragraph(errors.getvalue())}{_similar_flags(run, words)}. --help lists all flags.")


def _first_paragraph(frame: str) -> str:
    """Return the message that tyro has drawn in a frame, as one line, without the details below it."""
    lines = [line.strip("│╰╯ ") for line in frame.splitlines()]
    # The title is in the upper border, or, on terminals without these characters, above a rule.
    lines = ["" if line.startswith("╭") or not line.strip("─-") else line for line in lines]
    paragraphs = [" ".join(paragraph.split()) for paragraph in re.split(r"\n{2,}", "\n".join(lines).strip())]
    message = paragraphs[0 if "╭" in frame else min(1, len(paragraphs) - 1)].rstrip(".")
    return message[:1].upper() + message[1:]


def _similar_flags(run: Callable[..., Any], words: Sequence[str]) -> str:
    """Return a hint for words that are similar to flags without being one."""
    text = io.StringIO()
    with redirect_stdout(text), suppress(SystemExit):
        run(args=["--help"])
    flags = re.findall(r"^\W*(--[a-z][\w-]*)", text.getvalue(), re.MULTILINE)
    given = [word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--")]
    close = [near for word in given if word not in flags for near in difflib.get_close_matches(word, flags)]
    return f"; similar: {', '.join(dict.fromkeys(close))}" if close else ""


def fields_given(words: Sequence[str]) -> set[str]:
    """Return the names of the flags among the words of a command line, written as fields: ``latent_dim``."""
    return {word[2:].partition("=")[0].replace("-", "_") for word in words if word.startswith("--")}
