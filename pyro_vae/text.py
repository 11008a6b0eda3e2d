r"""Text that a terminal can be given: one line of printable characters, whatever a file or a folder is called."""

from __future__ import annotations


def printable(name: str) -> str:
    r"""Return a name on one line, in printable characters.

    The rest is escaped as Python has it: line feeds, what steers a terminal (``\x1b``), marks that turn the direction
    of reading (``\u202e``), and bytes of a file name that are no characters.
    """
    return "".join(c if c.isprintable() else escape(c) for c in name)


def escape(character: str) -> str:
    """Return a character as Python escapes it."""
    return character.encode("unicode_escape").decode()
