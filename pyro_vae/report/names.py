r"""Names of runs as they are shown: whatever a folder is called, one line of a table and one label of a figure."""

from __future__ import annotations

from matplotlib.font_manager import FontProperties, findfont, get_font

_LABEL_LENGTH = 40


def shown(name: str) -> str:
    r"""Return a name on one line, in printable characters.

    The rest is escaped as Python has it: line feeds, what steers a terminal (``\x1b``), marks that turn the direction
    of reading (``\u202e``), and bytes of a file name that are no characters.
    """
    return "".join(c if c.isprintable() else _escaped(c) for c in name)


def label(name: str) -> str:
    r"""Return a name as a figure shows it: its end, in characters that the font has, none of them a command.

    Between two ``$`` matplotlib would read mathematics, and from a legend it leaves out what begins with ``_``.
    """
    font = get_font(findfont(FontProperties()))
    text = "".join(c if font.get_char_index(ord(c)) else _escaped(c) for c in shown(name))[-_LABEL_LENGTH:]
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
