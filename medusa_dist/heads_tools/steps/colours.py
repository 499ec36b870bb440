"""The colour of each head, in every drawing of a terminal.

Owns the colours. Not here: those of files (page.py).
"""

from rich.style import Style

# Colour i: the token was drafted by head i and accepted; 0: the model's own choice, one per step.
HEAD_STYLES = tuple(Style.parse(s) for s in ("default", "green", "cyan", "yellow", "magenta", "bright_blue"))


def style_of(head: int) -> Style:
    """Colour of a token guessed by this head."""
    return HEAD_STYLES[min(head, len(HEAD_STYLES) - 1)]
