"""Writing PromQL: whatever goes into a query is a literal there, never a part of its syntax. Pure.

https://prometheus.io/docs/prometheus/latest/querying/basics/
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from sair.errors import InvalidInput

__all__ = ["one_of", "quoted", "samples_of"]

_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*", re.ASCII)
_SPECIAL = re.compile(r"[\\.+*?()|\[\]{}^$]")
"""What means something in RE2; a backslash before any punctuation makes it a plain character."""


def quoted(text: str) -> str:
    """A string literal: double quotes, with Go's escapes for what may not stand between them."""
    plain = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t", "\0": "\\x00"}
    return '"' + "".join(plain.get(character, character) for character in text) + '"'


def one_of(label: str, values: Iterable[str]) -> str:
    """A matcher of series whose label is exactly one of some values.

    Args:
        label: A label's name, ``__name__`` for the metric's.
        values: As they are; none matches nothing.

    Raises:
        InvalidInput: If the name is none.
    """
    if not _LABEL.fullmatch(label):
        raise InvalidInput("label", label, "letters, digits and _, no digit first")
    distinct = sorted(set(values))
    if len(distinct) == 1:
        return f"{label}={quoted(distinct[0])}"
    # Without values [^\s\S] matches no string, not even the empty one that a missing label counts as.
    pattern = "|".join(_SPECIAL.sub(r"\\\g<0>", value) for value in distinct) or r"[^\s\S]"
    return f"{label}=~{quoted(pattern)}"


def samples_of(matchers: Iterable[str], seconds: float) -> str:
    """A query for all raw samples of the last so many seconds, at least one."""
    return f"{{{','.join(matchers)}}}[{max(1, round(seconds))}s]"
