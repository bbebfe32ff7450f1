"""Text for terminals: stored text is somebody else's, and must not steer the terminal that shows it."""

from __future__ import annotations

__all__ = ["printable"]

_LONGEST_TEXT = 600


def printable(text: str) -> str:
    """Without control characters, and not longer than a paragraph."""
    shown = "".join(character if character.isprintable() else "�" for character in text)
    return shown if len(shown) <= _LONGEST_TEXT else shown[:_LONGEST_TEXT] + "…"
