r"""Text that is safe to print to a terminal, whatever characters file names contain."""

from __future__ import annotations


def printable(name: str) -> str:
    r"""Return `name` as a single line of printable characters.

    All other characters are escaped as in Python string literals: line feeds, terminal control characters (``\x1b``),
    marks that change the direction of text (``\u202e``), and undecodable bytes of a file name.
    """
    return "".join(c if c.isprintable() else escape(c) for c in name)


def escape(character: str) -> str:
    """Escape a character as in a Python string literal."""
    return character.encode("unicode_escape").decode()
