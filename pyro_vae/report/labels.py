r"""Labels of figures."""

from __future__ import annotations

from pyro_vae.text import escape, printable

_LABEL_LENGTH = 40  # characters


def figure_label(name: str) -> str:
    r"""Return the last 40 characters of a name for display in a figure, with characters missing in the font escaped.

    ``$`` is escaped, because matplotlib would typeset text between two of them as mathematics. A space is put before a
    leading ``_``, because matplotlib omits labels that start with ``_`` from legends.
    """
    from matplotlib.font_manager import FontProperties, findfont, get_font  # imported on use, see `drawing.style`

    font = get_font(findfont(FontProperties()))
    text = "".join(c if font.get_char_index(ord(c)) else escape(c) for c in printable(name))[-_LABEL_LENGTH:]
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")
