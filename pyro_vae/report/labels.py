r"""Labels of figures."""

from __future__ import annotations

from matplotlib.font_manager import FontProperties, findfont, get_font

from pyro_vae.text import escape, printable

_LABEL_LENGTH = 40


def figure_label(name: str) -> str:
    r"""Return a name as a figure shows it: its end, in characters that the font has, none of them a command.

    Between two ``$`` matplotlib would read mathematics, and from a legend it leaves out what begins with ``_``.
    """
    font = get_font(findfont(FontProperties()))
    text = "".join(c if font.get_char_index(ord(c)) else escape(c) for c in printable(name))[-_LABEL_LENGTH:]
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")
